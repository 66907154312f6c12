"""Read the configuration text of mmengine and mmcv, which is Python, without running it.

Such a text is a list of assignments of literals, `dict(...)` and lists. It is parsed into a syntax
tree, from which only these are evaluated; everything else (calls, imports, names) is ignored.
"""

import ast
from typing import Any

LONGEST = 1 << 18
DEEPEST = 40


def read_config_text(text: str) -> dict[str, Any] | None:
    """Return the values that a text assigns, by name.

    Returns:
        The values as plain data, or None if the text is not Python or assigns nothing.
    """
    if len(text) > LONGEST:
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    values: dict[str, Any] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=node):
                try:
                    values[name] = _value(node, 0)
                except ValueError:
                    values.pop(name, None)
            case ast.Expr(value=ast.Constant()):  # a comment
                pass
            case _:  # it may change the names above in unknown ways
                return None
    return values or None


def _value(node: ast.expr, depth: int) -> Any:
    """Return the value of an expression.

    Raises:
        ValueError: it is not a literal, or nested too deeply.
    """
    if depth > DEEPEST:
        raise ValueError("nested too deeply for settings")
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item, depth + 1) for item in items]
        case ast.Dict(keys=keys, values=items):
            names = [_name(key) for key in keys]
            return _known(dict(zip(names, items, strict=True)), depth)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return _known({_name(keyword.arg): keyword.value for keyword in keywords}, depth)
        case _:
            raise ValueError("not a literal")


def _name(key: ast.expr | str | None) -> str:
    if isinstance(key, ast.Constant):
        key = key.value if isinstance(key.value, str) else repr(key.value)
    if not isinstance(key, str):
        raise ValueError("a mapping that includes another mapping")
    return key


def _known(items: dict[str, ast.expr], depth: int) -> dict[str, Any]:
    """Return the values of a mapping that are literals."""
    values = {}
    for name, node in items.items():
        try:
            values[name] = _value(node, depth + 1)
        except ValueError:
            continue
    return values
