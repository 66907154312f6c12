"""Every layout that is read to every layout that is written, for every task and some geometries."""

import itertools

import numpy as np
import pytest
from test_convert import arrays, assert_same_file, can_hold, target_for, told, write_original

from mae_convert.checkpoint import open_checkpoint
from mae_convert.convert import execute
from mae_convert.errors import LayoutError
from mae_convert.layouts import LAYOUTS
from mae_convert.planning import plan_conversion
from reference_models.configuration import ViTMAEConfig

SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 8,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 10,
    "num_labels": 5,
}
MODELS = {
    "pretrain": ("pretrain", {}),
    "pretrain, deep": ("pretrain", {"num_hidden_layers": 11}),
    "pretrain, wide picture": ("pretrain", {"image_size": (8, 24)}),
    "encoder": ("encoder", {}),
    "encoder, four channels, wide picture": ("encoder", {"num_channels": 4, "image_size": (8, 24)}),
    "encoder without biases of q, k, v": ("encoder", {"qkv_bias": False}),
    "classifier, class token": ("classify", {"num_labels": 5}),
    "classifier, mean of patches": ("classify", {"global_pool": "avg"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_pair_is_bit_exact_there_and_back_or_refused_with_a_reason(tmp_path, name, capsys):
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
    done = 0
    for number, (source, layout) in enumerate(itertools.product(sources, LAYOUTS), start=1):
        target = target_for(layout, tmp_path, number)
        if layout not in sources:
            with pytest.raises(LayoutError, match=r"\w{3,}"):
                plan_conversion(sources[source], target, layout)
            continue
        execute(plan_conversion(sources[source], target, layout))
        back = tmp_path / f"{number}-back.pth"
        again = open_checkpoint(target)
        execute(plan_conversion(again, back, "facebook"))
        assert_same_file(before, arrays(back))
        assert told(again.configuration.model, task) == told(config, task), (source, layout)
        done += 1
    with capsys.disabled():
        print(f"\n{name}: {done} pairs of {len(sources)} layouts, bit-exact")
    assert done == len(sources) ** 2
