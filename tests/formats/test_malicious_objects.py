"""Skipped objects in a file cannot change the tensors that are read, not even malicious ones.

Random checkpoints are read by this package and, if that succeeds, by `torch.load` without its
protection. There, the skipped objects are replaced by classes and functions that change all their
arguments: each reachable mapping or list and, in a call, also every tensor. Both must read the same
tensors.
"""

import collections
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from attacks import skipped_objects as parts

from mae_convert.errors import CheckpointError
from mae_convert.formats import open_container

FILES = 250


def damage(value: object, *, tensors: bool, seen: set[int]) -> None:
    """Change every object that is reachable from a value."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if tensors:
            value.fill_(-1)
    elif isinstance(value, dict):
        for item in list(value.values()):
            damage(item, tensors=tensors, seen=seen)
        value["a"] = torch.full((2,), -2.0)
    elif isinstance(value, (list, tuple, set)):
        for item in list(value):
            damage(item, tensors=tensors, seen=seen)
        if isinstance(value, list):
            value.append("damaged")
    if hasattr(value, "__dict__"):
        damage(value.__dict__, tensors=tensors, seen=seen)


class MaliciousObject:
    """An object that changes all its arguments."""

    def __new__(cls, *arguments: object, **keywords: object) -> "MaliciousObject":
        damage((arguments, keywords), tensors=True, seen=set())
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        self.handed: list[object] = []

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state
        damage(state, tensors=False, seen=set())

    def __setitem__(self, key: object, value: object) -> None:
        self.__dict__.setdefault("handed", []).append((key, value))
        damage((key, value), tensors=False, seen=set())

    def append(self, value: object) -> None:
        """Change the appended values."""
        self["appended"] = value

    def extend(self, values: list[object]) -> None:
        """Change the appended values."""
        self["extended"] = values


def make(*arguments: object) -> MaliciousObject:
    """Change the arguments and return a new object."""
    damage(arguments, tensors=True, seen=set())
    return MaliciousObject()


class Writer:
    """Writes random values as pickle opcodes; each leaves one value on the stack."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int = 0) -> bytes:
        """Return the opcodes of a value."""
        kinds = (
            [self.leaf]
            if depth > 3
            else [self.leaf, self.container, self.skipped_object, self.skipped_object]
        )
        return self.random.choice(kinds)(depth)

    def leaf(self, _depth: int) -> bytes:
        """Return a scalar, a tensor of the model's or another storage, or a memoized value."""
        shared = [parts.get(parts.STATE), parts.get(parts.ROOT), parts.tensor("0")]
        others = [b"K\x01", b"N", parts.text("x"), parts.tensor("1"), parts.CLASS]
        return self.random.choice(shared if self.random.random() < 0.1 else others)

    def container(self, depth: int) -> bytes:
        """Return a list, a tuple, a mapping or a mapping with attributes."""
        inner = self.value(depth + 1)
        return self.random.choice(
            [
                b"](" + inner + self.value(depth + 1) + b"e",
                inner + b"\x85",
                parts.mapping(x=inner),
                parts.ORDERED + parts.text("y") + inner + b"s",
                parts.ORDERED + parts.mapping(note=inner) + b"b",
            ]
        )

    def skipped_object(self, depth: int) -> bytes:
        """Return an object that is skipped and receives a value as its argument."""
        inner = self.value(depth + 1)
        return self.random.choice(
            [
                parts.NEW + parts.mapping(x=inner) + b"b",
                parts.NEW + inner + b"b",
                parts.NEW + parts.text("x") + inner + b"s",
                parts.NEW + inner + b"a",
                parts.FUNCTION + inner + b"\x85R",
                parts.CLASS + inner + b"\x85\x81",
                parts.CLASS + b")" + parts.mapping(x=inner) + b"\x92",
                parts.FUNCTION + inner + b"\x85R0" + self.value(depth + 1),
            ]
        )


@pytest.mark.filterwarnings("ignore")
def test_read_values_equal_those_after_loading_malicious_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor, objects = types.ModuleType("vendor"), types.ModuleType("vendor.objects")
    vars(objects).update(Thing=MaliciousObject, make=make, OrderedDict=collections.OrderedDict)
    monkeypatch.setitem(sys.modules, "vendor", vendor)
    monkeypatch.setitem(sys.modules, "vendor.objects", objects)
    read = refused = 0
    for seed in range(FILES):
        path = parts.write(tmp_path, parts.checkpoint(extra=Writer(seed).value()))
        try:
            opened = open_container(path)
        except CheckpointError:
            refused += 1
            continue
        read += 1
        left = torch.load(path, weights_only=False)["model"]
        assert {name: tensor.load().tolist() for name, tensor in opened.tensors.items()} == {
            name: tensor.tolist() for name, tensor in left.items()
        }, seed
    assert read > FILES / 2
    assert refused > FILES / 20
