"""Read a pickle as data: a stack machine that neither imports nor calls what the file names.

Python's own unpickler imports and calls what a pickle names, so opening a file can run any program.
Here a name is looked up in the table of supported types (`mae_convert.formats.pickle_types`). Other
names create `Opaque` objects, which record the values that they receive; a file whose weights
depend on such an object is refused. `pickletools` parses the bytes. A subclass of
`pickle.Unpickler` whose `find_class` uses the same table would be shorter, but it has no limits on
resources: a pickle of 9 bytes, whose `LONG_BINPUT` has a large index, makes it allocate 1.06 GB
(Python 3.11; 16 times as much for the largest index), and nothing limits the number of opcodes or
the digits of an integer. Moreover, whatever `find_class` returns is called.
"""

import io
import itertools
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from mae_convert.errors import MaeConvertError
from mae_convert.files.byte_ranges import damaged
from mae_convert.formats.code_names import runs_code
from mae_convert.formats.opaque_objects import Effects, would_run_code
from mae_convert.formats.pickle_stream import PickleStream
from mae_convert.formats.pickle_types import (
    INERT,
    Maker,
    NumpyArray,
    Opaque,
    Stateful,
    WouldRunCodeError,
    check_hashable,
)

LARGEST_INTEGER_BITS = 1024
COLLECTIONS = (str, bytes, tuple, list, dict, set, frozenset)
HIGHEST_PROTOCOL = 5
FRAME_HEAD = 9
"""The number of bytes of the opcode FRAME and its argument."""

MOST_STEPS = 1 << 21
MADE_UNASKED = 1 << 16
"""The maximum number of elements that the calls in a pickle may create, in addition to one element
for each byte read."""

HOLDS_ANYTHING = frozenset(
    name
    for name in INERT
    if name.startswith(("collections.", "mmengine."))
    or name.endswith((".set", ".frozenset", ".slice"))
)
"""Container types: an object of such a type is read even if it contains objects of unsupported
types, which are replaced by an `Opaque`."""

SUBCLASS = "torch._tensor._rebuild_from_type_v2"
"""The PyTorch function that calls its first argument and converts the result to a subclass."""

DAMAGE = (
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class PickleReader:
    """Reads the pickles of one file.

    Args:
        path: the file, for messages.
        persistent: returns the value of a persistent id, by which PyTorch refers to a storage.
        inert: the supported names, each with the value or `Maker` that replaces it.
        strict: refuse a pickle with an unsupported name, even if no weight needs the name.

    Attributes:
        names: the dotted names in the pickles that have been read.
        effects: the operations of the last pickle on objects of unsupported types.
    """

    def __init__(
        self,
        path: Path,
        persistent: Callable[[Any], object],
        inert: Mapping[str, object] = INERT,
        *,
        strict: bool = False,
    ) -> None:
        self.path = path
        self.persistent = persistent
        self.inert = inert
        self.strict = strict
        self.effects = Effects()
        self.names: list[str] = []
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.stream: PickleStream | io.BytesIO = io.BytesIO()
        self.begins = self.made = 0

    def load(self, stream: PickleStream | io.BytesIO) -> object:
        """Read the pickle at the stream's position and return its value.

        Lists, dicts and scalars are returned unchanged. An object of another type is replaced by
        the value that `inert` specifies for the type, or by an `Opaque`, which only describes the
        object. Afterwards, the stream is at the end of the pickle.

        Raises:
            CheckpointError: the pickle is damaged, or contains a name that is used to run code.
        """
        self.stack, self.marks, self.memo, self.effects = [], [], {}, Effects()
        self.stream, self.begins, self.made = stream, stream.tell(), 0
        frame_ends: int | None = None
        try:
            opcodes = pickletools.genops(cast(IO[bytes], stream))
            for opcode, argument, position in itertools.islice(opcodes, MOST_STEPS):
                name = opcode.name
                if frame_ends is not None or name == "FRAME":
                    frame_ends = _checked_frame(name, argument, position or 0, frame_ends)
                if name == "STOP":
                    if len(self.stack) != 1 or self.marks:
                        raise ValueError("more than one value")
                    return self.stack.pop()
                if name not in STEPS:
                    raise damaged(self.path, f"its pickle has the opcode {name}")
                STEPS[name](self, argument)
            raise ValueError("more objects than any checkpoint has")
        except MaeConvertError:
            raise
        except DAMAGE as error:
            raise damaged(self.path, "its pickle cannot be read") from error

    def push(self, value: object) -> None:
        """Push a value on the stack."""
        self.stack.append(value)

    def pop_to_mark(self) -> list:
        """Remove the last mark and all values above it from the stack; return the values."""
        return self.pop_last(len(self.stack) - self.marks.pop())

    def pop_last(self, count: int) -> list:
        """Remove the last `count` values from the stack and return them.

        Raises:
            IndexError: the stack has fewer values.
        """
        if not 0 <= count <= len(self.stack):
            raise IndexError("the stack underflows")
        start = len(self.stack) - count
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def push_global(self, module: object, name: object) -> None:
        """Push a replacement for the type or function that the pickle names.

        The replacement is the value in the table of supported types or, if the table does not
        contain the name, an `Opaque`, a placeholder for an unsupported type or function.

        Raises:
            CheckpointError: the name is used to run code.
            TypeError: the name is not text.
        """
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is not text")
        dotted = f"{module}.{name}"
        self.names.append(dotted)
        if dotted in self.inert:
            self.push(self.inert[dotted])
            return
        if self.strict or runs_code(module, name):
            raise would_run_code(self.path, dotted)
        self.effects.mentioned.append(dotted)
        self.push(Opaque(dotted))

    def push_result(self, maker: object, arguments: object, keywords: object = None) -> None:
        """Push a replacement for the result of a call in the pickle.

        The replacement is a plain value if the type or function and its arguments are supported,
        otherwise an `Opaque`, a placeholder for an object that is not created.

        Args:
            maker: the replacement of the type or function.
            arguments: the positional arguments of the call.
            keywords: the keyword arguments of the call, if any.

        Raises:
            TypeError: `maker` is not a type or function, or the arguments are invalid.
            ValueError: an argument has an invalid value, or calls create too many elements.
        """
        if not isinstance(arguments, tuple):
            raise TypeError("a call without arguments")
        if isinstance(maker, Opaque):
            self._push_opaque(maker.name, (maker, *arguments, keywords))
            return
        if not isinstance(maker, Maker):
            raise TypeError("a call of an object that is not callable")
        opaque = next((part for part in arguments if isinstance(part, Opaque)), None)
        try:
            if keywords or (opaque and maker.name not in HOLDS_ANYTHING):
                raise WouldRunCodeError
            value = self._result_of(maker, arguments, holds_unread=opaque is not None)
        except WouldRunCodeError:
            if maker.name == SUBCLASS:  # its first argument is the function that creates the tensor
                arguments = arguments[1:]
            self._push_opaque(opaque.name if opaque else maker.name, (*arguments, keywords))
            return
        self.count_elements(value)
        self.push(value)

    def _result_of(self, maker: Maker, arguments: tuple, *, holds_unread: bool) -> object:
        """Return the plain value that replaces the result of a call in the pickle.

        The value is computed by a function of mae-convert; nothing that the pickle names is called.

        Args:
            maker: the replacement of the type or function.
            arguments: the arguments of the call.
            holds_unread: whether an argument is an `Opaque`.

        Raises:
            WouldRunCodeError: the result depends on an `Opaque`.
        """
        try:
            return maker.make(*arguments)
        except TypeError:
            if holds_unread:
                raise WouldRunCodeError from None
            raise

    def push_persistent(self, identity: object) -> None:
        """Push the value of a persistent id: a storage, or an `Opaque` as its placeholder.

        An `Opaque` is pushed if the id contains an unsupported type.
        """
        parts = identity if isinstance(identity, tuple) else ()
        if unknown := next((part for part in parts if isinstance(part, Opaque)), None):
            if parts[0] == "storage":  # old files also refer to the source code of a class
                self.effects.storages.append(unknown.name)
            self._push_opaque(unknown.name, parts)
            return
        self.push(self.persistent(identity))

    def _push_opaque(self, name: str, arguments: tuple) -> None:
        if self.strict:
            raise would_run_code(self.path, name)
        self.effects.mentioned.append(name)
        made = Opaque(name, arguments)
        self.effects.calls.append(made)
        self.push(made)

    def record_received(self, target: Opaque, items: object) -> None:
        """Record that state or items are passed to an object.

        Raises:
            CheckpointError: the object is a type, function or module, not an instance.
        """
        if target.is_name:
            raise would_run_code(self.path, target.name)
        target.received.append(items)

    def count_elements(self, value: object) -> None:
        """Add the elements of a value to the number of elements that calls in the pickle create.

        The number is limited (see `MADE_UNASKED`), because a call whose argument is a reference to
        a memoised value takes a few bytes in the file, but may copy the whole value.

        Args:
            value: the value that replaces the result of a call, or an object whose state was set.

        Raises:
            ValueError: the calls create too many elements.
        """
        if isinstance(value, NumpyArray):
            self.made += value.array.nbytes
        elif isinstance(value, COLLECTIONS):
            self.made += len(value)
        if self.made > MADE_UNASKED + self.stream.tell() - self.begins:
            raise ValueError("it would create more elements than the file contains")


def _checked_frame(name: str, argument: Any, position: int, ends: int | None) -> int | None:
    """Check that an opcode fits the frames of a pickle, and return the end of the current frame.

    Args:
        name: the opcode.
        argument: the argument of the opcode; for FRAME, the length of the frame.
        position: the position of the opcode.
        ends: the end of the frame that contains the previous opcode; None if there is no such
            frame.

    Returns:
        The end of the frame that contains the opcode (for FRAME, of the frame that it begins); None
        if there is no such frame.

    Raises:
        ValueError: an opcode crosses the end of a frame, frames are nested, or a frame extends
            beyond the end of the pickle.
    """
    if ends is not None and position >= ends:
        if position > ends:
            raise ValueError("an opcode crosses the end of a frame")
        ends = None
    if name == "FRAME":
        if ends is not None:
            raise ValueError("a nested frame")
        return position + FRAME_HEAD + argument
    if name == "STOP" and ends not in (None, position + 1):
        raise ValueError("a frame that does not end where the pickle ends")
    return ends


def _protocol(_reader: PickleReader, number: Any) -> None:
    if number > HIGHEST_PROTOCOL:
        raise ValueError("an unknown protocol")


def _skip(_reader: PickleReader, _: object) -> None:
    pass


def _literal(reader: PickleReader, argument: object) -> None:
    if isinstance(argument, int) and argument.bit_length() > LARGEST_INTEGER_BITS:
        raise ValueError("an integer of excessive size")
    reader.push(argument)


def _pop(reader: PickleReader, _: object) -> None:
    if reader.marks and reader.marks[-1] == len(reader.stack):
        reader.marks.pop()
    else:
        reader.stack.pop()


def _extend(reader: PickleReader, items: list) -> None:
    target = reader.stack[-1]
    if isinstance(target, Opaque):
        reader.record_received(target, items)
        return
    if type(target) is not list:
        raise TypeError("list items for an object that is not a list")
    target.extend(items)


def _add_items(reader: PickleReader, _: object) -> None:
    items = reader.pop_to_mark()
    target = reader.stack[-1]
    if isinstance(target, Opaque):
        reader.record_received(target, items)
        return
    if type(target) is not set:
        raise TypeError("set items for an object that is not a set")
    target.update(check_hashable(item) for item in items)


def _set_items(reader: PickleReader, items: list) -> None:
    target = reader.stack[-1]
    if isinstance(target, Opaque):
        reader.record_received(target, items)
        return
    if not isinstance(target, dict):
        raise TypeError("dictionary items for an object that is not a mapping")
    pairs = _pairs(items)
    for key in target.keys() & pairs.keys():
        reader.effects.replace(target, target[key])
    target.update(pairs)


def _pairs(items: list) -> dict:
    return {check_hashable(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _put(reader: PickleReader, argument: Any) -> None:
    reader.memo[int(argument)] = reader.stack[-1]


def _memoize(reader: PickleReader, _: object) -> None:
    reader.memo[len(reader.memo)] = reader.stack[-1]


def _global(reader: PickleReader, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    reader.push_global(module, name)


def _stack_global(reader: PickleReader, _: object) -> None:
    module, name = reader.pop_last(2)
    reader.push_global(module, name)


def _reduce(reader: PickleReader, _: object) -> None:
    reader.push_result(*reader.pop_last(2))


def _new_with_keywords(reader: PickleReader, _: object) -> None:
    reader.push_result(*reader.pop_last(3))


def _instance(reader: PickleReader, argument: Any) -> None:
    arguments = tuple(reader.pop_to_mark())
    _global(reader, argument)
    reader.push_result(reader.stack.pop(), arguments)


def _object(reader: PickleReader, _: object) -> None:
    maker, *arguments = reader.pop_to_mark()
    reader.push_result(maker, tuple(arguments))


def _build(reader: PickleReader, _: object) -> None:
    target, state = reader.pop_last(2)
    if isinstance(target, Opaque):
        reader.record_received(target, state)
    elif isinstance(target, Stateful):
        reader.effects.replace(target, state)
        target.set_state(state)
        reader.count_elements(target)
    elif type(target) is not dict:
        raise TypeError("a state for an object that cannot have a state")
    reader.push(target)


Step = Callable[[PickleReader, Any], None]

STEPS: Mapping[str, Step] = {
    "PROTO": _protocol,
    "FRAME": _skip,
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _literal),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _literal),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _literal),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _literal),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _literal),
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_SET": lambda reader, _: reader.push(set()),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "MARK": lambda reader, _: reader.marks.append(len(reader.stack)),
    "POP": _pop,
    "POP_MARK": lambda reader, _: reader.pop_to_mark().clear(),
    "DUP": lambda reader, _: reader.push(reader.stack[-1]),
    "LIST": lambda reader, _: reader.push(reader.pop_to_mark()),
    "APPEND": lambda reader, _: _extend(reader, reader.pop_last(1)),
    "APPENDS": lambda reader, _: _extend(reader, reader.pop_to_mark()),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.pop_to_mark())),
    "TUPLE1": lambda reader, _: reader.push(tuple(reader.pop_last(1))),
    "TUPLE2": lambda reader, _: reader.push(tuple(reader.pop_last(2))),
    "TUPLE3": lambda reader, _: reader.push(tuple(reader.pop_last(3))),
    "DICT": lambda reader, _: reader.push(_pairs(reader.pop_to_mark())),
    "SETITEM": lambda reader, _: _set_items(reader, reader.pop_last(2)),
    "SETITEMS": lambda reader, _: _set_items(reader, reader.pop_to_mark()),
    "ADDITEMS": _add_items,
    "FROZENSET": lambda reader, _: reader.push(
        frozenset(check_hashable(item) for item in reader.pop_to_mark())
    ),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda reader, key: reader.push(reader.memo[int(key)])
    ),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "NEWOBJ_EX": _new_with_keywords,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _build,
    "PERSID": lambda reader, argument: reader.push_persistent(argument),
    "BINPERSID": lambda reader, _: reader.push_persistent(reader.stack.pop()),
}
