"""Layouts are recognised by the whole key set and the shapes; a misfit is explained."""

import json

import pytest

from mae_convert.errors import LayoutError
from mae_convert.recognition import recognise


@pytest.fixture
def base(golden):
    path = golden / "keys" / "facebook_mae_visualize_vit_base.json"
    return {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}


def without(shapes, name):
    return {n: s for n, s in shapes.items() if n != name}


def test_every_missing_tensor_is_missed(base):
    for name in base:
        with pytest.raises(LayoutError, match="missing"):
            recognise(without(base, name))


def test_a_missing_tensor_is_named(base):
    with pytest.raises(LayoutError, match=r"missing: blocks\.3\.attn\.qkv\.bias"):
        recognise(without(base, "blocks.3.attn.qkv.bias"))


def test_a_tensor_too_many_is_named_with_its_nearest_neighbour(base):
    with pytest.raises(LayoutError, match=r"unexpected: blocks\.3\.mlp\.fc9\.bias.*fc[12]\.bias"):
        recognise({**base, "blocks.3.mlp.fc9.bias": (768,)})


@pytest.mark.parametrize(
    "name", ["norm.weight", "blocks.5.attn.qkv.weight", "pos_embed", "decoder_pred.bias"]
)
def test_a_wrong_shape_is_an_error(base, name):
    shape = (*base[name][:-1], base[name][-1] + 3)
    with pytest.raises(LayoutError, match=r"shape|missing|split"):
        recognise({**base, name: shape})


def test_what_is_no_mae_is_told_apart_from_what_is_nearly_one():
    with pytest.raises(LayoutError, match="not a MAE in any known layout"):
        recognise({f"stem.{i}.conv.weight": (768,) for i in range(20)})


def test_an_empty_grid_is_an_error(base):
    with pytest.raises(LayoutError):
        recognise({**base, "pos_embed": (1, 1, 768)})
