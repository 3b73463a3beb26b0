"""Tells what a file is from its bytes; its name decides only between formats that begin alike.

Knows nothing of what the formats hold.
"""

from __future__ import annotations

from typing import Final

from octavo.errors import InvalidArgument
from octavo.v1 import inspector_pb2 as pb
from services.inspector import wire
from services.inspector.reader import Reader

Format = pb.FileFormat

_HEAD_BYTES: Final = 1024
_ZIP_NAME_OFFSET: Final = 30
# The fields of ModelProto with their wire types: github.com/onnx/onnx, onnx/onnx.proto.
_ONNX_FIELDS: Final = {
    **dict.fromkeys((1, 5), wire.VARINT),
    **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), wire.BYTES),
}
_ONNX_FIELD_LIMIT: Final = 2_000


def detect(reader: Reader, path: str) -> pb.FileFormat.ValueType:
    """The format of the file; UNKNOWN when it is none that is known here."""
    head = reader.read(0, min(_HEAD_BYTES, reader.size_bytes))
    if _is_safetensors(head, reader.size_bytes, path):
        return Format.FILE_FORMAT_SAFETENSORS
    by_magic = _by_magic(head)
    if by_magic is not None:
        return by_magic
    if path.endswith((".pkl", ".pickle", ".pt", ".pth", ".ckpt")):
        # Protocols 0 and 1 have no magic number: what claims to be a pickle is treated as one.
        return Format.FILE_FORMAT_PICKLE
    if _is_onnx(reader):
        return Format.FILE_FORMAT_ONNX
    return _text_format(head, is_whole=len(head) == reader.size_bytes)


def _is_safetensors(head: bytes, size_bytes: int, path: str) -> bool:
    if path.endswith(".safetensors"):
        return True
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size_bytes - 8


def _by_magic(head: bytes) -> pb.FileFormat.ValueType | None:
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(head)
    if head.startswith(b"\x93NUMPY"):
        return Format.FILE_FORMAT_NUMPY
    if head.startswith(b"GGUF"):
        return Format.FILE_FORMAT_GGUF
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return Format.FILE_FORMAT_PICKLE
    return None


def _zip_format(head: bytes) -> pb.FileFormat.ValueType:
    """PyTorch writes `<root>/data.pkl` first, NumPy's archives hold `.npy` members."""
    length = int.from_bytes(head[26:28], "little")
    name = head[_ZIP_NAME_OFFSET : _ZIP_NAME_OFFSET + length]
    if name.endswith(b"data.pkl"):
        return Format.FILE_FORMAT_PYTORCH_ZIP
    return Format.FILE_FORMAT_NUMPY_ZIP if name.endswith(b".npy") else Format.FILE_FORMAT_ZIP


def _is_onnx(reader: Reader) -> bool:
    """Whether the whole file is a message with the fields of ModelProto, a graph among them."""
    has_graph = False
    try:
        for count, field in enumerate(wire.fields(reader, 0, reader.size_bytes)):
            if _ONNX_FIELDS.get(field.number) != field.kind or count > _ONNX_FIELD_LIMIT:
                return False
            has_graph |= field.number == 7
    except InvalidArgument:
        return False
    return has_graph


def _text_format(head: bytes, *, is_whole: bool) -> pb.FileFormat.ValueType:
    if not head or b"\0" in head:
        return Format.FILE_FORMAT_TEXT if not head else Format.FILE_FORMAT_UNKNOWN
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # The head may end within a character, which has up to four bytes.
        if is_whole or error.start < len(head) - 3:
            return Format.FILE_FORMAT_UNKNOWN
    is_json = head.lstrip()[:1] in (b"{", b"[")
    return Format.FILE_FORMAT_JSON if is_json else Format.FILE_FORMAT_TEXT
