"""The members of a zip archive, taken only where every reader would see the same ones: stored, complete, in a row.

Archives that one library reads and another rejects have hidden pickles from scanners (GHSA-w8jq-xcqf-f792,
GHSA-7q5r-7gvp-wc82), so any irregularity is refused. Format: APPNOTE.TXT 6.3.10 of PKWARE.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from services.inspector.reader import Reader, malformed

_END: Final = struct.Struct("<4s4H2LH")
_END_64_LOCATOR: Final = struct.Struct("<4sLQL")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_ABSENT: Final = 0xFFFF_FFFF
_DESCRIPTOR_FLAG: Final = 0x0008
_UTF8_FLAG: Final = 0x0800
_MEMBERS_LIMIT: Final = 100_000
_STREAM_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member; `offset` of its first byte in the archive, sizes in bytes."""

    name: str
    header_offset: int
    offset: int
    size_bytes: int
    crc32: int
    has_descriptor: bool


def read_members(reader: Reader) -> list[Member]:
    """The members in the order of their bytes; InvalidArgument names the first irregularity."""
    count, start, end = _directory(reader)
    members, position = [], start
    for _ in range(count):
        member, position = _member(reader, position, end)
        members.append(member)
    if position != end:
        raise malformed(reader.label, "its directory holds more than its entries")
    if len({member.name for member in members}) != len(members):
        raise malformed(reader.label, "two of its members have the same name")
    members.sort(key=lambda member: member.header_offset)
    _refuse_gaps(reader, members, start)
    return members


def verify(reader: Reader, member: Member) -> None:
    """InvalidArgument when the bytes of a member do not have their checksum."""
    checksum = 0
    for block in reader.stream(member.offset, member.size_bytes, _STREAM_BYTES):
        checksum = zlib.crc32(block, checksum)
    if checksum != member.crc32:
        raise malformed(reader.label, f"its member {member.name[:200]!r} does not have its checksum")


def _directory(reader: Reader) -> tuple[int, int, int]:
    """Number of entries, and where the central directory begins and ends."""
    at = reader.size_bytes - _END.size
    if at < 0:
        raise malformed(reader.label, "it is too short for a zip archive")
    mark, disk, first_disk, here, count, size, start, comment = _END.unpack(reader.read(at, _END.size))
    if mark != b"PK\x05\x06" or comment:
        raise malformed(reader.label, "it does not end with the end of a directory: cut off, or followed by more")
    if disk or first_disk or here != count:
        raise malformed(reader.label, "it is one part of several")
    end = at
    locator = at - _END_64_LOCATOR.size
    if locator >= 0 and reader.read(locator, 4) == b"PK\x06\x07":
        count, size, start, end = _directory_64(reader, locator)
    if start + size != end:
        raise malformed(reader.label, "its directory does not lie before its end")
    if count > _MEMBERS_LIMIT:
        raise malformed(reader.label, f"it has {count} members, more than {_MEMBERS_LIMIT}")
    return count, start, end


def _directory_64(reader: Reader, locator: int) -> tuple[int, int, int, int]:
    _, disk, at, disks = _END_64_LOCATOR.unpack(reader.read(locator, _END_64_LOCATOR.size))
    if at + _END_64.size != locator:
        raise malformed(reader.label, "its 64-bit directory end is not where it should be")
    fields = _END_64.unpack(reader.read(at, _END_64.size))
    mark, here, count, size, start = fields[0], *fields[6:10]
    if mark != b"PK\x06\x06" or disk or disks != 1 or here != count:
        raise malformed(reader.label, "its 64-bit directory end is not one")
    return count, size, start, at


def _member(reader: Reader, position: int, end: int) -> tuple[Member, int]:
    """The member of the directory entry at `position`, and the position of the next entry."""
    if position + _CENTRAL.size > end:
        raise malformed(reader.label, "its directory has fewer entries than it says")
    fields = _CENTRAL.unpack(reader.read(position, _CENTRAL.size))
    mark, _, _, flags, method, _, _, crc, stored, size, names, extras, comments, *_ = fields
    header_offset = fields[-1]
    after = position + _CENTRAL.size + names + extras + comments
    if mark != b"PK\x01\x02" or after > end:
        raise malformed(reader.label, f"its directory entry at byte {position} is broken")
    raw = reader.read(position + _CENTRAL.size, names)
    name = _name(reader.label, raw)
    if method or flags & ~(_DESCRIPTOR_FLAG | _UTF8_FLAG):
        raise malformed(reader.label, f"its member {name!r} is compressed, encrypted or otherwise special")
    extra = reader.read(position + _CENTRAL.size + names, extras)
    size, stored, header_offset = _wide(extra, [size, stored, header_offset])
    if size != stored:
        raise malformed(reader.label, f"its member {name!r} has two sizes")
    offset = _check_local(reader, header_offset, raw, flags, (crc, size))
    return Member(name, header_offset, offset, size, crc, bool(flags & _DESCRIPTOR_FLAG)), after


def _name(label: str, raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise malformed(label, "a member has a name that is not UTF-8") from error
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise malformed(label, f"a member has the name {name[:200]!r}, which leaves the archive")
    return name


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """The sizes and offset with those that need 64 bits taken from the extra field 0x0001, in this order."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        wide = extra[4 : 4 + length] if kind == 1 else wide
        extra = extra[4 + length :]
    result = []
    for value in values:
        if value == _ABSENT and len(wide) >= 8:
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]  # noqa: PLW2901 - the wide form replaces it
        result.append(value)
    return result


def _check_local(reader: Reader, at: int, raw: bytes, flags: int, facts: tuple[int, int]) -> int:
    """Compares the header before the data with the directory; returns where the data begins."""
    mark, _, own_flags, method, _, _, crc, stored, size, names, extras = _LOCAL.unpack(reader.read(at, _LOCAL.size))
    own_name = reader.read(at + _LOCAL.size, names)
    stored_sizes = _wide(reader.read(at + _LOCAL.size + names, extras), [size, stored])
    agree = (crc, *stored_sizes) == (facts[0], facts[1], facts[1])
    # With a descriptor behind the data, the header may leave checksum and sizes open.
    is_open = bool(flags & _DESCRIPTOR_FLAG) and crc == 0 and set(stored_sizes) <= {0, _ABSENT}
    if mark != b"PK\x03\x04" or own_name != raw or (own_flags, method) != (flags, 0) or not (agree or is_open):
        raise malformed(reader.label, f"its member {raw[:200]!r} is described in two ways")
    return int(at + _LOCAL.size + names + extras)


def _refuse_gaps(reader: Reader, members: list[Member], directory: int) -> None:
    """Members must lie in a row from the first byte to the directory: nothing may hide between them."""
    position = 0
    for member in members:
        if member.header_offset != position:
            raise malformed(reader.label, f"between its members lie {member.header_offset - position} bytes")
        position = member.offset + member.size_bytes
        if member.has_descriptor:
            position += _descriptor_bytes(reader, member, position)
    if position != directory:
        raise malformed(reader.label, f"before its directory lie {directory - position} bytes of no member")


def _descriptor_bytes(reader: Reader, member: Member, position: int) -> int:
    """Length of the descriptor after a member, which must repeat the directory's facts."""
    for form in (struct.Struct("<4sLQQ"), struct.Struct("<4sLLL")):
        if position + form.size <= reader.size_bytes:
            facts = form.unpack(reader.read(position, form.size))
            if facts == (b"PK\x07\x08", member.crc32, member.size_bytes, member.size_bytes):
                return int(form.size)
    raise malformed(reader.label, f"its member {member.name[:200]!r} is followed by other facts than its own")
