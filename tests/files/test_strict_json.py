"""External JSON: documents that two programs could read differently are refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_convert.errors import CheckpointError
from mae_convert.files.strict_json import DEEPEST, JsonError, parse_json
from mae_convert.formats import open_container
from mae_convert.sources.fetch import RECORDS, read_records

GOOD = (
    '{"a": 1, "b": [1.5, null, true, "\\u00e9\\ud83d\\ude00"]}',
    "[" * DEEPEST + "1" + "]" * DEEPEST,
    str(2**63 - 1),
    "1e308",
    '"NaN"',
)
BAD = {
    '{"a": 1, "a": 1}': "twice",
    '[{"b": {"a": 1, "a": 2}}]': "twice",
    "[NaN]": "NaN",
    "-Infinity": "Infinity",
    "[1e400]": "too large",
    str(2**63): "integer",
    "9" * 100_000: "integer",
    "[" * (DEEPEST + 1) + "1" + "]" * (DEEPEST + 1): "nested",
    "[" * 200_000: "nested",
    '"\\ud800"': "surrogate",
    "{": "Expecting",
    "": "Expecting",
    "\ufeff{}": "BOM",
    "1 2": "Extra data",
}


@pytest.mark.parametrize("text", GOOD)
def test_plain_json_is_read_as_the_standard_reader_does(text):
    assert parse_json(text.encode()) == parse_json(text) == json.loads(text)


@pytest.mark.parametrize("text", BAD)
def test_ambiguous_json_is_refused_with_the_reason(text):
    with pytest.raises(JsonError, match=BAD[text]):
        parse_json(text.encode())


@pytest.mark.parametrize("data", [b"\xff", "{}".encode("utf-16"), "{}".encode("utf-32"), b"\x80{}"])
def test_other_encodings_are_refused(data):
    with pytest.raises(JsonError, match="UTF-8"):
        parse_json(data)


def test_a_configuration_inside_a_file_must_not_be_ambiguous(tmp_path):
    path, tensors = tmp_path / "x.safetensors", {"w": np.ones(4, np.float32)}
    for text in ("no JSON at all", "{'a': 1}", '{"num_attention_heads": 3}'):
        save_file(tensors, path, metadata={"config": text})
        open_container(path)
    two = '{"num_attention_heads": 3, "num_attention_heads": 4}'
    save_file(tensors, path, metadata={"config": two})
    with pytest.raises(CheckpointError, match=r"x\.safetensors contains ambiguous JSON"):
        open_container(path)


@pytest.mark.parametrize("record", [[], {"url": "x"}, {"first_used": 3}, "text"])
def test_a_damaged_record_of_downloads_is_refused_with_the_field(tmp_path, record):
    (tmp_path / RECORDS).write_text(json.dumps({"a.pth": record}))
    with pytest.raises(CheckpointError, match=r"downloads\.json: a\.pth"):
        read_records(tmp_path)
