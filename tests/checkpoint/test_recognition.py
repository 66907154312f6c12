"""Layouts are recognised by the whole key set and the shapes; a mismatch is explained."""

import json
import re

import pytest

from mae_convert.checkpoint.recognition import recognise
from mae_convert.errors import LayoutError


@pytest.fixture
def base(golden):
    path = golden / "keys" / "facebook_mae_visualize_vit_base.json"
    return {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}


def without(shapes, name):
    return {n: s for n, s in shapes.items() if n != name}


def one_of_each_kind(names):
    """Return one name of each part of a block, each from a different block, and all other names."""
    kinds = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "N", name, count=1), []).append(name)
    return [alike[number % len(alike)] for number, alike in enumerate(kinds.values())]


def refused_without_each(shapes, names):
    for name in names:
        with pytest.raises(LayoutError, match="missing"):
            recognise(without(shapes, name))


def test_missing_tensor_of_each_kind_is_detected(base):
    names = one_of_each_kind(base)
    assert len(names) < 50
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} >= {"0", "11"}
    refused_without_each(base, names)


@pytest.mark.slow
def test_every_missing_tensor_is_detected(base):
    refused_without_each(base, base)


def test_a_missing_tensor_is_named(base):
    with pytest.raises(LayoutError, match=r"missing: blocks\.3\.attn\.qkv\.bias"):
        recognise(without(base, "blocks.3.attn.qkv.bias"))


def test_unexpected_tensor_is_named_with_the_nearest_known_name(base):
    with pytest.raises(LayoutError, match=r"unexpected: blocks\.3\.mlp\.fc9\.bias.*fc[12]\.bias"):
        recognise({**base, "blocks.3.mlp.fc9.bias": (768,)})


@pytest.mark.parametrize(
    "name", ["norm.weight", "blocks.5.attn.qkv.weight", "pos_embed", "decoder_pred.bias"]
)
def test_a_wrong_shape_is_an_error(base, name):
    shape = (*base[name][:-1], base[name][-1] + 3)
    with pytest.raises(LayoutError, match=r"shape|missing|split"):
        recognise({**base, name: shape})


def test_unrelated_file_is_reported_as_not_a_mae():
    with pytest.raises(LayoutError, match="not an MAE in any known layout"):
        recognise({f"stem.{i}.conv.weight": (768,) for i in range(20)})


def test_an_empty_grid_is_an_error(base):
    with pytest.raises(LayoutError):
        recognise({**base, "pos_embed": (1, 1, 768)})
