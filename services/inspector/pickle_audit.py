"""Reads pickles as data: what they would import and call, told by walking their opcodes, never by unpickling.

Default deny: everything but the few names that rebuilding tensors needs is reported. Strings are followed through
stack and memo, since an import may take its names from there; every other value is opaque. The opcodes are decoded
by `pickletools`, which executes nothing; frames are checked here, because the C unpickler trusts them and it does not.
"""

from __future__ import annotations

import pickletools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from octavo.v1 import inspector_pb2 as pb
from services.inspector import findings
from services.inspector.pickle_imports import ALLOWED, is_executing

OPCODE_LIMIT: Final = 1_000_000
_STACK_LIMIT: Final = 10_000
_MEMO_LIMIT: Final = 100_000
_IMPORT_LIMIT: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Import:
    """A global as data: it is never looked up."""

    record: pb.PickleImport


@dataclass(frozen=True, slots=True)
class _Built:
    """What an allowed call returns."""


_MARK: Final = object()
_OPAQUE: Final = object()


class Unsound(Exception):
    """The bytes are no pickle that a reader without tricks could read."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LimitReached(Exception):
    """More than is analysed of one file."""


@dataclass(slots=True)
class PickleAudit:
    """What is known of the pickles of one file. `member` names the pickle within an archive."""

    member: str = ""
    imports: list[pb.PickleImport] = field(default_factory=list)
    opcode_counts: Counter[str] = field(default_factory=Counter)
    tricks: list[tuple[str, str]] = field(default_factory=list)
    opcode_total: int = 0

    def read(self, data: bytes) -> int:
        """Walks one pickle from the start of `data`; returns where it ends. Unsound or LimitReached otherwise."""
        machine = _Machine(self)
        frame_end = -1
        end = 0
        for opcode, argument, position in _opcodes(data):
            end = position
            self.opcode_counts[opcode.name] += 1
            self.opcode_total += 1
            if self.opcode_total > OPCODE_LIMIT:
                raise LimitReached(f"more than {OPCODE_LIMIT} opcodes")
            frame_end = _check_frame(opcode.name, argument, position, frame_end, len(data))
            machine.step(opcode.name, argument, position)
        return end + 1

    def findings(self, path: str) -> Iterator[pb.InspectionFinding]:
        """What speaks against loading: tricks, then imports that data does not need."""
        subject = f"{path}: {self.member}" if self.member else path
        for code, message in self.tricks:
            yield findings.error(code, subject, message, _ADVICE)
        for item in self.imports:
            if not item.is_allowed:
                name = f"{item.module}.{item.symbol}"[:200]
                verb = "calls" if item.is_called else "imports"
                make = findings.error if is_executing(item) else findings.warning
                yield make("pickle-import", subject, f"it {verb} {name} (byte {item.offset_bytes})", _ADVICE)

    def verdict(self) -> pb.AuditVerdict.ValueType:
        """The worst that was seen."""
        if self.tricks or any(is_executing(item) for item in self.imports):
            return pb.AUDIT_VERDICT_MALICIOUS
        if any(not item.is_allowed for item in self.imports):
            return pb.AUDIT_VERDICT_SUSPICIOUS
        return pb.AUDIT_VERDICT_CLEAN


_ADVICE: Final = "do not load it; ask its author for safetensors"


def _opcodes(data: bytes) -> Iterator[tuple[Any, Any, int]]:
    """The opcodes up to STOP; Unsound for whatever pickletools cannot decode."""
    try:
        for opcode, argument, position in pickletools.genops(data):
            yield opcode, argument, position or 0
    except (ValueError, IndexError, OverflowError, KeyError) as error:
        raise Unsound("pickle-broken", f"its opcodes cannot be decoded: {str(error)[:200]}") from error


def _check_frame(name: str, argument: Any, position: int, frame_end: int, size: int) -> int:
    """Frames may neither nest nor end within an opcode: cpython's C unpickler reads across them (cpython#154848)."""
    if frame_end >= 0 and position > frame_end:
        raise Unsound("pickle-frame", f"a frame ends at byte {frame_end}, within an opcode")
    if position == frame_end:
        frame_end = -1
    if name == "FRAME":
        if frame_end >= 0:
            raise Unsound("pickle-frame", f"a frame begins at byte {position} within another")
        # The opcode and its length take nine bytes.
        frame_end = position + 9 + argument
        if frame_end > size:
            raise Unsound("pickle-frame", f"a frame at byte {position} is longer than the pickle")
    if name == "STOP" and frame_end not in (-1, position + 1):
        raise Unsound("pickle-frame", f"the pickle stops at byte {position}, its frame at {frame_end}")
    return frame_end


class _Machine:
    """The unpickler's stack and memo with strings, imports and opaque values on them."""

    def __init__(self, audit: PickleAudit) -> None:
        self._audit = audit
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, position: int) -> None:
        """Does what the unpickler would do to stack and memo, and to nothing else."""
        if name in _STRINGS:
            self._push(argument)
        elif name in _PUSHES:
            self._push(_MARK if name == "MARK" else _OPAQUE)
        elif name in _STEPS:
            _STEPS[name](self, argument, position)
        elif name not in _NOTHING:
            self._audit.tricks.append(("pickle-opcode", f"it has the opcode {name} (byte {position})"))
            raise Unsound("pickle-opcode", f"the opcode {name} at byte {position} belongs in no file of tensors")

    def _push(self, value: Any) -> None:
        if len(self._stack) >= _STACK_LIMIT:
            raise LimitReached(f"its stack grows beyond {_STACK_LIMIT} values")
        self._stack.append(value)

    def _pop(self, position: int) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Unsound("pickle-stack", f"the opcode at byte {position} takes more than there is on the stack")
        return self._stack.pop()

    def _pop_to_mark(self, position: int) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise Unsound("pickle-stack", f"the opcode at byte {position} needs a mark")

    def _import(self, module: Any, symbol: Any, position: int) -> None:
        if not isinstance(module, str) or not isinstance(symbol, str):
            self._audit.tricks.append(("pickle-hidden-name", f"the import at byte {position} computes its name"))
            module, symbol = "?", "?"
        if len(self._audit.imports) >= _IMPORT_LIMIT:
            raise LimitReached(f"more than {_IMPORT_LIMIT} imports")
        record = pb.PickleImport(
            module=module[:400],
            symbol=symbol[:400],
            member=self._audit.member,
            offset_bytes=position,
            # An exact pair: a dotted symbol would reach through an innocent module.
            is_allowed=(module, symbol) in ALLOWED,
        )
        self._audit.imports.append(record)
        self._push(_Import(record))

    def _call(self, target: Any, arguments: Any, position: int) -> None:
        """A call of `target`: of an import it is noted, of anything else it is a trick."""
        if not isinstance(target, _Import):
            message = f"the call at byte {position} is of something that was computed"
            self._audit.tricks.append(("pickle-hidden-call", message))
        else:
            target.record.is_called = True
            is_latin1 = arguments is not _OPAQUE and arguments[1:] == ("latin1",)
            if target.record.module == "_codecs" and not is_latin1:
                message = f"the call of _codecs.encode at byte {position} is not of latin1"
                self._audit.tricks.append(("pickle-codec", message))
        self._push(_Built())

    def stack_global(self, _: Any, position: int) -> None:
        symbol, module = self._pop(position), self._pop(position)
        self._import(module, symbol, position)

    def named_global(self, argument: str, position: int) -> None:
        module, _, symbol = argument.partition(" ")
        self._import(module, symbol, position)

    def instance(self, argument: str, position: int) -> None:
        self._pop_to_mark(position)
        self.named_global(argument, position)
        self._call(self._stack.pop(), _OPAQUE, position)

    def object_(self, _: Any, position: int) -> None:
        values = self._pop_to_mark(position)
        self._call(values[0] if values else None, _OPAQUE, position)

    def reduce(self, _: Any, position: int) -> None:
        arguments, target = self._pop(position), self._pop(position)
        self._call(target, arguments if isinstance(arguments, tuple) else _OPAQUE, position)

    def new_object_with_keywords(self, argument: Any, position: int) -> None:
        self._pop(position)
        self.reduce(argument, position)

    def build(self, _: Any, position: int) -> None:
        self._pop(position)
        self._refuse_import_below(position)

    def get(self, argument: int, position: int) -> None:
        if argument not in self._memo:
            raise Unsound("pickle-memo", f"the opcode at byte {position} recalls what was never remembered")
        self._push(self._memo[argument])

    def put(self, argument: int, position: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise Unsound("pickle-stack", f"the opcode at byte {position} remembers nothing")
        if len(self._memo) >= _MEMO_LIMIT:
            raise LimitReached(f"its memo grows beyond {_MEMO_LIMIT} values")
        self._memo[argument] = self._stack[-1]

    def memoize(self, _: Any, position: int) -> None:
        self.put(len(self._memo), position)

    def duplicate(self, _: Any, position: int) -> None:
        self._push(value := self._pop(position))
        self._push(value)

    def pop(self, _: Any, position: int) -> None:
        # POP on a mark is allowed and takes the mark away.
        if not self._stack:
            raise Unsound("pickle-stack", f"the opcode at byte {position} takes more than there is on the stack")
        self._stack.pop()

    def drop_to_mark(self, _: Any, position: int) -> None:
        self._pop_to_mark(position)

    def fill(self, _: Any, position: int) -> None:
        """Takes values into the container below the mark, by methods that the container's class defines."""
        self._pop_to_mark(position)
        self._refuse_import_below(position)

    def _refuse_import_below(self, position: int) -> None:
        if not self._stack or isinstance(self._stack[-1], _Import):
            message = f"the opcode at byte {position} changes what is no container"
            self._audit.tricks.append(("pickle-build", message))

    def collect(self, _: Any, position: int) -> None:
        self._pop_to_mark(position)
        self._push(_OPAQUE)

    def collect_tuple(self, _: Any, position: int) -> None:
        values = self._pop_to_mark(position)
        self._push(_flat(values))

    def replace(self, _: Any, position: int) -> None:
        self._pop(position)
        self._push(_OPAQUE)

    def stop(self, _: Any, position: int) -> None:
        self._pop(position)
        if self._stack:
            raise Unsound("pickle-stack", f"{len(self._stack)} values are left when it stops at byte {position}")


def _flat(values: list[Any]) -> Any:
    """A tuple of strings and opaque values as far as a call's check needs it; others do not matter."""
    return tuple(value if isinstance(value, str) else _OPAQUE for value in values[:4])


def _tuple_of(count: int) -> Callable[[_Machine, Any, int], None]:
    def collect(machine: _Machine, _: Any, position: int) -> None:
        values = [machine._pop(position) for _ in range(count)]
        machine._push(_flat(values[::-1]))

    return collect


def _take(count: int) -> Callable[[_Machine, Any, int], None]:
    """Takes values into the container below them, which stays."""

    def take(machine: _Machine, _: Any, position: int) -> None:
        for _ in range(count):
            machine._pop(position)
        machine._refuse_import_below(position)

    return take


_STRINGS: Final = frozenset(
    {
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_PUSHES: Final = frozenset(
    {
        *("MARK", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "NONE"),
        *("NEWTRUE", "NEWFALSE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "PERSID"),
    }
)
_NOTHING: Final = frozenset({"PROTO", "FRAME"})
_STEPS: Final[Mapping[str, Callable[[_Machine, Any, int], None]]] = MappingProxyType(
    {
        "GLOBAL": _Machine.named_global,
        "STACK_GLOBAL": _Machine.stack_global,
        "INST": _Machine.instance,
        "OBJ": _Machine.object_,
        "REDUCE": _Machine.reduce,
        "NEWOBJ": _Machine.reduce,
        "NEWOBJ_EX": _Machine.new_object_with_keywords,
        "BUILD": _Machine.build,
        "BINPERSID": _Machine.replace,
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
        "MEMOIZE": _Machine.memoize,
        "DUP": _Machine.duplicate,
        "POP": _Machine.pop,
        "POP_MARK": _Machine.drop_to_mark,
        **dict.fromkeys(("LIST", "DICT", "FROZENSET"), _Machine.collect),
        **dict.fromkeys(("APPENDS", "SETITEMS", "ADDITEMS"), _Machine.fill),
        "TUPLE": _Machine.collect_tuple,
        "EMPTY_TUPLE": _tuple_of(0),
        "TUPLE1": _tuple_of(1),
        "TUPLE2": _tuple_of(2),
        "TUPLE3": _tuple_of(3),
        "APPEND": _take(1),
        "SETITEM": _take(2),
        "STOP": _Machine.stop,
    }
)
