"""Validate external documents against a JSON schema before they are used.

The schemas are in ``data/schemas`` (draft 7). The validator is imported only if there is a
document: opening a weight file alone does not need it.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from mae_convert.errors import CheckpointError
from mae_convert.files.strict_json import parse_json


def check_document(value: Any, schema: str, where: object, advice: str) -> None:
    """Require that a document is as its schema says.

    Args:
        value: the document, as plain data.
        schema: name of the schema: "certificate", "config", "conversion", "index", "preprocessor"
            or "trace".
        where: the file, for the message.
        advice: what to do if it is not.

    Raises:
        CheckpointError: it is not; the message names the file and the field.
    """
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator(schema)(value)
    except JsonSchemaValueException as error:
        said = error.message.removeprefix("data").removeprefix(".")
        raise CheckpointError(f"{where}: {said.strip()}", hint=advice) from error


@cache
def _validator(schema: str) -> Callable[[Any], Any]:
    from importlib import resources

    from fastjsonschema import compile as compile_schema

    text = (resources.files("mae_convert") / "data" / "schemas" / f"{schema}.json").read_bytes()
    definition: Mapping[str, Any] = parse_json(text)
    return compile_schema(definition, use_default=False, use_formats=False)
