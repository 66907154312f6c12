"""Strict JSON, which every parser reads in the same way; JSON schemas; values in JSON types.

The schemas are in ``data/schemas`` (draft 7). The validator is imported only when a document is
checked, because a file that contains only weights does not need it.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from mae_convert.errors import CheckpointError

DEEPEST = 200
LARGEST = 1 << 63  # the first integer that does not fit into 64 bits


class JsonError(ValueError):
    """A text is not JSON, or parsers may interpret it differently."""


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text.

    Only JSON in UTF-8 is accepted. Duplicate keys, NaN, Infinity, numbers beyond 64 bits, unpaired
    surrogates, and more than 200 levels of nesting are refused.

    Raises:
        JsonError: the text is refused; the message states why, without the name of the file.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
    except RecursionError:
        raise JsonError(f"it is nested more than {DEEPEST} levels deep") from None
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 text: byte {error.start} is invalid") from None
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(str(error)) from error
    _check_depth(value)
    if "\\u" in text and not _is_unicode(value):
        raise JsonError("it contains an unpaired surrogate, which is not a character")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonError(f"it has the key {twice[:100]!r} twice in one object")
    return fields


def _refuse_constant(name: str) -> Any:
    raise JsonError(f"it contains {name}, which is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > len(str(-LARGEST)) or abs(number := int(digits)) >= LARGEST:
        raise JsonError(f"it contains an integer with {len(digits)} digits, which is too large")
    if digits == "-0":
        raise JsonError("it contains the number -0, which some parsers read as a float")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonError(f"it contains the number {digits[:40]}, which is too large")
    return number


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        level = [item for parent in level for item in _children(parent)]
        if not level:
            return
    raise JsonError(f"it is nested more than {DEEPEST} levels deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any) -> Any:
    """Return a value in JSON types: NumPy scalars as numbers, non-finite floats as text."""
    if isinstance(value, str):
        return in_unicode(value)
    if isinstance(value, Mapping):
        return {in_unicode(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    # If the value is a NumPy scalar, NumPy is imported already; `--help` must not import it.
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def in_unicode(value: Any) -> Any:
    r"""Return a copy of a value in which lone surrogates are escape sequences, such as ``\udcff``.

    Python represents file names that are not UTF-8 with lone surrogates, and some pickles contain
    them. Neither strict JSON nor SQLite can store them.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {in_unicode(key): in_unicode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_unicode(item) for item in value]
    return value


def check_document(value: Any, schema: str, where: object, advice: str) -> None:
    """Require that a document conforms to its schema.

    Args:
        value: the document, as plain data.
        schema: name of the schema: "certificate", "config", "conversion", "index", "preprocessor"
            or "trace".
        where: the name of the file, for the message.
        advice: what to do if the document does not conform.

    Raises:
        CheckpointError: the document does not conform; the message names the file and the field.
    """
    from fastjsonschema import JsonSchemaValueException

    try:
        try:
            _validator(schema)(value)
        except JsonSchemaValueException:
            _validator(schema, detailed=True)(value)  # its message names the missing fields
            raise
    except JsonSchemaValueException as error:
        problem = error.message.removeprefix("data").removeprefix(".")
        raise CheckpointError(f"{where}: {problem.strip()}", hint=advice) from error


def load_schemas(*names: str) -> None:
    """Compile schemas in advance, instead of when the first document is checked."""
    for name in names:
        _validator(name)


@cache
def _validator(schema: str, *, detailed: bool = False) -> Callable[[Any], Any]:
    from importlib import resources

    from fastjsonschema import compile as compile_schema

    text = (resources.files("mae_convert") / "data" / "schemas" / f"{schema}.json").read_bytes()
    definition: Mapping[str, Any] = parse_json(text)
    # Without detailed errors, a schema compiles in half the time.
    options = {"use_default": False, "use_formats": False, "detailed_exceptions": detailed}
    return compile_schema(definition, **options)
