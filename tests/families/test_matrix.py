"""Every layout that is read to every layout that is written, for every task and some geometries."""

import itertools

import numpy as np
import pytest
from small_models import (
    SMALL,
    arrays,
    assert_same_file,
    can_hold,
    fields_of_task,
    target_for,
    write_original,
)

from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import LayoutError
from mae_convert.families.mae.layouts import LAYOUTS
from reference_models.configuration import ViTMAEConfig

MODELS = {
    "pretrain": ("pretrain", {}),
    "pretrain, deep": ("pretrain", {"num_hidden_layers": 11}),
    "pretrain, wide image": ("pretrain", {"image_size": (8, 24)}),
    "encoder": ("encoder", {}),
    "encoder, four channels, wide image": ("encoder", {"num_channels": 4, "image_size": (8, 24)}),
    "encoder without biases of q, k, v": ("encoder", {"qkv_bias": False}),
    "classifier, class token": ("classify", {"num_labels": 5}),
    "classifier, mean of patches": ("classify", {"global_pool": "avg"}),
}


def chosen_pairs(sources, every):
    """Return pairs of a layout that is read and one that is written.

    All of them for one model; for the others each layout is read twice and written twice, beside
    each one that refuses. Tensors are mapped by one table and then by another, so a fault of a
    table shows in any pair that it is part of.
    """
    pairs = list(itertools.product(sources, LAYOUTS))
    names = list(sources)
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    return [
        (source, layout)
        for source, layout in pairs
        if every or layout == source or layout == following[source] or layout not in sources
    ]


WHOLLY = ("pretrain", "pretrain, deep")  # models of which only all pairs are tried


def all_pairs(name):
    marks = () if name == "pretrain" else pytest.mark.slow
    return pytest.param(name, True, marks=marks, id=f"{name}, every pair")


@pytest.mark.parametrize(
    ("name", "every"),
    [
        *(pytest.param(name, False, id=name) for name in MODELS if name not in WHOLLY),
        *map(all_pairs, MODELS),
    ],
)
def test_round_trip_of_every_pair_is_bit_exact_or_refused_with_a_reason(
    tmp_path, name, every, capsys
):
    task, changes = MODELS[name]
    config = ViTMAEConfig(**{**SMALL, **changes})
    write_original(tmp_path / "original.pth", config, task, np.float32)
    before, original = arrays(tmp_path / "original.pth"), open_checkpoint(tmp_path / "original.pth")
    sources = {"facebook": original}
    for layout in LAYOUTS:
        if layout != "facebook" and can_hold(layout, original):
            target = target_for(layout, tmp_path)
            execute(plan_conversion(original, target, layout))
            sources[layout] = open_checkpoint(target)
    pairs = []
    for number, (source, layout) in enumerate(chosen_pairs(sources, every), start=1):
        target = target_for(layout, tmp_path, number)
        if layout not in sources:
            with pytest.raises(LayoutError, match=r"\w{3,}"):
                plan_conversion(sources[source], target, layout)
            continue
        report = execute(plan_conversion(sources[source], target, layout))
        back = tmp_path / f"{number}-back.pth"
        again = open_checkpoint(target)
        execute(plan_conversion(again, back, "facebook"))
        assert_same_file(before, arrays(back))
        assert fields_of_task(again.configuration.model, task) == fields_of_task(config, task), (
            source,
            layout,
        )
        fingerprints = {report["fingerprint"], report["source"]["fingerprint"]}
        fingerprints.add(str(checkpoint_fingerprint(again)))
        assert fingerprints == {str(checkpoint_fingerprint(original))}, (source, layout)
        pairs.append((source, layout))
    with capsys.disabled():
        print(f"\n{name}: {len(pairs)} pairs of {len(sources)} layouts, bit-exact")
    expected = len(sources) ** 2 if every else min(2, len(sources)) * len(sources)
    assert len(pairs) == len(set(pairs)) == expected
