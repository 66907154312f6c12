"""Mapping tables are valid in both directions, checked when built, and cover every tensor."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_convert.checkpoint.recognition import recognise
from mae_convert.errors import LayoutError
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.families.mae.schema import schema
from mae_convert.files.sequential import SequentialArray
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.table import (
    Repeat,
    Row,
    Rule,
    Table,
    braces,
    external_shapes,
    read_tensors,
    write_tensors,
)
from mae_convert.layouts.transforms import (
    KEY_BIAS,
    SAME,
    TRANSPOSE,
    Fuse,
    Permute,
    SplitHeads,
    WithoutBatch,
)
from reference_models.configuration import ViTMAEConfig

TABLES = [
    pytest.param(layout, table, task, id=f"{table.name}-{number}-{task}")
    for layout in LAYOUTS.values()
    for number, table in enumerate(layout.tables)
    for task in table.tasks
    if "*" not in table.groups[0][0].external
]


@pytest.mark.parametrize(
    ("transform", "shapes"),
    [
        (SAME, [(3, 4)]),
        (TRANSPOSE, [(3, 4)]),
        (Permute((2, 3, 1, 0)), [(5, 2, 3, 4)]),
        (Fuse(3), [(2, 4)] * 3),
        (Fuse(2), [(3,)] * 2),
        (SplitHeads("kernel", 2), [(6, 5)]),
        (SplitHeads("bias", 2), [(6,)]),
        (SplitHeads("output", 2), [(5, 6)]),
        (WithoutBatch(), [(1, 4, 2)]),
    ],
)
def test_transform_is_invertible_and_gives_the_shapes(transform, shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    written = transform.write(arrays)
    assert written.shape == transform.write_shape(shapes)
    assert transform.read_shapes(written.shape) == shapes
    for before, after in zip(arrays, transform.read(written), strict=True):
        np.testing.assert_array_equal(before, after)


def test_patch_kernel_axes_are_permuted_for_tensorflow_and_back():
    # PyTorch (out, in, height, width) to TensorFlow (height, width, in, out).
    assert Permute((2, 3, 1, 0)).write_shape([(768, 3, 16, 14)]) == (16, 14, 3, 768)


def test_a_shape_that_cannot_be_split_is_refused():
    with pytest.raises(LayoutError, match="cannot be split"):
        Fuse(3).read_shapes((7, 2))


@pytest.mark.parametrize(
    "rows",
    [
        (Row("a", "x"), Row("a", "y")),
        (Row("a", "x"), Row("b", "x")),
        (Row("{a,b}", "{x,y,z}"),),
        (Repeat("a.#", "x", (Row(".w", ".w"),)),),
    ],
    ids=["canonical twice", "external twice", "braces that do not pair", "# on one side"],
)
def test_a_malformed_table_is_refused_when_it_is_built(rows):
    with pytest.raises(LayoutError):
        Table("broken", ("encoder",), rows)


def test_braces_expand_to_names_in_order():
    assert braces("{q,k}.{w,b}") == ["q.w", "q.b", "k.w", "k.b"]


def test_canonical_name_without_a_table_row_is_an_error():
    with pytest.raises(LayoutError, match=r"cannot store head\.norm"):
        LAYOUTS["transformers"].table_for("classify").expand(["head.norm.weight"])


def test_incomplete_fused_row_is_an_error():
    with pytest.raises(LayoutError, match=r"needs .*attention\.k\.weight"):
        LAYOUTS["facebook"].table_for("encoder").expand(["encoder.blocks.0.attention.q.weight"])


def random_canonical(config: ViTMAEConfig, task: str) -> dict[str, LazyTensor]:
    rng = np.random.default_rng(7)
    return {
        name: LazyTensor.from_array(name, rng.standard_normal(shape).astype(np.float32))
        for name, shape in schema(config, task).items()
    }


@st.composite
def configurations(draw):
    patch = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    grid = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    heads, decoder_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return ViTMAEConfig(
        hidden_size=4 * heads,
        num_hidden_layers=draw(st.integers(1, 12)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 9)),
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch_size=patch,
        num_channels=draw(st.integers(1, 5)),
        qkv_bias=draw(st.booleans()),
        decoder_hidden_size=4 * decoder_heads,
        decoder_num_hidden_layers=draw(st.integers(1, 3)),
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=draw(st.integers(1, 9)),
        num_labels=draw(st.integers(1, 5)),
        global_pool="token",
    )


@pytest.mark.parametrize(("layout", "table", "task"), TABLES)
@settings(max_examples=20, deadline=None)
@given(config=configurations())
def test_every_mapping_table_is_invertible(layout, table, task, config):
    keyless = not table.has_key_bias and config.qkv_bias
    canonical = {
        name: tensor
        for name, tensor in random_canonical(config, task).items()
        if not (keyless and KEY_BIAS.search(name))
    }
    rules = [rule.bound(config.num_attention_heads) for rule in table.expand(canonical)]
    external = {tensor.name: tensor for tensor in write_tensors(canonical, rules)}
    shapes = {name: tensor.shape for name, tensor in external.items()}
    assert shapes == external_shapes(rules, schema(config, task))
    for name, tensor in external.items():
        assert tensor.load().shape == tensor.shape, name
    reading, synonyms = recognise(shapes, preferred=layout.name)
    assert (reading.layout.name, reading.task) == (layout.name, task)
    assert set(synonyms) <= {"facebook", "timm"}
    assert len(reading.created) == keyless * (len(schema(config, task)) - len(canonical))
    back = read_tensors(external, reading.rules)
    assert set(back) == set(canonical)
    for name, tensor in canonical.items():
        np.testing.assert_array_equal(back[name].load(), tensor.load(), err_msg=name)


@pytest.mark.parametrize("size", ["base", "large", "huge"])
@pytest.mark.parametrize("kind", ["visualize", "pretrain", "finetuned"])
def test_official_key_lists_match_in_name_shape_and_order(golden, kind, size):
    stored = json.loads((golden / "keys" / f"facebook_mae_{kind}_vit_{size}.json").read_text())
    shapes = {name: tuple(shape) for name, shape in stored.items()}
    reading, _ = recognise(shapes)
    task = {"visualize": "pretrain", "pretrain": "encoder", "finetuned": "classify"}[kind]
    assert (reading.layout.name, reading.task, reading.problems) == ("facebook", task, ())
    canonical = dict(_canonical_shapes(reading, shapes))
    rules = LAYOUTS["facebook"].table_for(task).expand(canonical)
    assert list(external_shapes(rules, canonical).items()) == list(shapes.items())
    pooling = {"facebook", "keras", "timm", "mmpretrain"}  # the others cannot store fc_norm
    for layout in LAYOUTS.values():
        holds = any(task in table.tasks for table in layout.tables)
        if not holds or (kind == "finetuned" and layout.name not in pooling):
            continue
        expanded = layout.table_for(task).expand(canonical)
        assert {n for rule in expanded for n in rule.canonicals} == set(canonical)


def _canonical_shapes(reading, shapes):
    for rule in reading.rules:
        parts = rule.transform.read_shapes(shapes[rule.external])
        yield from zip(rule.canonicals, parts, strict=True)


def test_keras_table_matches_the_file_written_by_keras(golden):
    """``reference_models/test_reference_keras.py`` checks the models against the same list."""
    frozen = json.loads((golden.parent / "keras_weight_paths.json").read_text())
    config = ViTMAEConfig.from_dict(frozen["config"])
    tasks = {
        "pretrain": ("pretrain", "token"),
        "encoder": ("encoder", "token"),
        "classify_token": ("classify", "token"),
        "classify_avg": ("classify", "avg"),
    }
    assert set(frozen["paths"]) == set(tasks)
    for name, (task, pooling) in tasks.items():
        shapes = schema(replace(config, global_pool=pooling), task)
        rules = LAYOUTS["keras"].table_for(task).expand(shapes)
        expected = {path: tuple(shape) for path, shape in frozen["paths"][name].items()}
        assert external_shapes(rules, shapes) == expected


class InMemory(SequentialArray):
    """An array in memory that counts the elements that are loaded at a time."""

    def __init__(self, array):
        super().__init__(array.shape, array.dtype)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "most", [0])

    def elements(self, start, stop):
        self.most[0] = max(self.most[0], stop - start)
        return self.array.reshape(-1)[start:stop]


@pytest.mark.parametrize(
    ("transform", "shapes"),
    [
        (SAME, [(4, 3)]),
        (Fuse(3), [(2, 4)] * 3),
        (SplitHeads("bias", 2), [(6,)]),
        (WithoutBatch(), [(1, 5, 2)]),
    ],
)
def test_transforms_that_keep_element_order_are_read_and_written_in_chunks(
    transform, shapes, monkeypatch
):
    monkeypatch.setattr("mae_convert.formats.tensor.PIECE_BYTES", 20)  # 5 elements
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    sources = [InMemory(array) for array in arrays]
    names = tuple(f"c{number}" for number in range(len(arrays)))
    rule = Rule(names, "x", transform)
    tensors = {n: LazyTensor(n, s.shape, s.dtype, s) for n, s in zip(names, sources, strict=True)}
    (made,) = write_tensors(tensors, [rule])
    expected = transform.write(arrays)
    np.testing.assert_array_equal(np.concatenate(list(made.pieces())), expected.reshape(-1))
    assert max(source.most[0] for source in sources) <= 5
    np.testing.assert_array_equal(made.load(), expected, strict=True)
    back = read_tensors(
        {"x": LazyTensor("x", expected.shape, expected.dtype, InMemory(expected))}, [rule]
    )
    for name, array in zip(names, arrays, strict=True):
        np.testing.assert_array_equal(np.concatenate(list(back[name].pieces())), array.reshape(-1))
        np.testing.assert_array_equal(back[name].load(), array, strict=True)
