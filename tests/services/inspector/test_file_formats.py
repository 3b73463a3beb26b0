"""A file is what its bytes say."""

import io
import zipfile

import numpy as np
import pytest

from octavo.v1 import inspector_pb2 as pb
from services.inspector.file_formats import detect


def zip_of(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def saved(save, *arguments):
    buffer = io.BytesIO()
    save(buffer, *arguments)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "data", "expected"),
    [
        ("", b"\x02\0\0\0\0\0\0\0{}", pb.FILE_FORMAT_SAFETENSORS),
        ("broken.safetensors", b"", pb.FILE_FORMAT_SAFETENSORS),
        ("model.bin", zip_of("archive/data.pkl"), pb.FILE_FORMAT_PYTORCH_ZIP),
        ("x.txt", zip_of("readme"), pb.FILE_FORMAT_ZIP),
        ("x", saved(np.savez, np.zeros(2)), pb.FILE_FORMAT_NUMPY_ZIP),
        ("x", saved(np.save, np.zeros(2)), pb.FILE_FORMAT_NUMPY),
        ("notes.md", b"\x80\x04K\x01.", pb.FILE_FORMAT_PICKLE),
        ("old.pkl", b"I1\n.", pb.FILE_FORMAT_PICKLE),
        ("x", b"GGUF\x03\0\0\0", pb.FILE_FORMAT_GGUF),
        ("x", b' \n{"a": 1}', pb.FILE_FORMAT_JSON),
        ("x", b"plain", pb.FILE_FORMAT_TEXT),
        ("x", "ä".encode() * 600, pb.FILE_FORMAT_TEXT),
        ("x", b"a" * 1023 + "ä".encode(), pb.FILE_FORMAT_TEXT),
        ("x", b"a\xff", pb.FILE_FORMAT_UNKNOWN),
        ("x", b"a\0b", pb.FILE_FORMAT_UNKNOWN),
        ("x", b"", pb.FILE_FORMAT_TEXT),
    ],
)
def test_content_decides(read, path, data, expected):
    assert detect(read(data), path) == expected


def test_a_graph_is_known_by_its_fields_whatever_its_name(read, bundle):
    assert detect(read(bundle["model.onnx"]), "picture.png") == pb.FILE_FORMAT_ONNX
    assert detect(read(bundle["model.onnx"][:-1]), "picture.png") == pb.FILE_FORMAT_UNKNOWN
