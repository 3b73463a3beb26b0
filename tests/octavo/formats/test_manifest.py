import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import DataLoss, InvalidArgument
from octavo.formats.manifest import (
    FileEntry,
    Manifest,
    canonical_json,
    digest_bytes,
    digest_file,
    digest_tensors,
)
from octavo.formats.tensor_file import write_safetensors

DIGEST = "sha256:" + "0" * 64


def entry(path="a", digest=DIGEST, size_bytes=0):
    return FileEntry(path=path, digest=digest, size_bytes=size_bytes)


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "notes.txt").write_bytes(b"notes")
    (tmp_path / "empty").write_bytes(b"")
    write_safetensors(tmp_path / "model.safetensors", {"w": np.arange(5, dtype=np.float32), "b": np.ones((), "i8")})
    return tmp_path


def test_a_manifest_lists_files_and_tensors_with_their_own_digests(bundle):
    manifest = Manifest.of_directory(bundle)
    assert [entry.path for entry in manifest.files] == ["empty", "model.safetensors", "part/notes.txt"]
    assert manifest.files[2] == entry("part/notes.txt", "sha256:" + hashlib.sha256(b"notes").hexdigest(), 5)
    weights = np.arange(5, dtype="<f4").tobytes()
    assert manifest.tensors["w"] == "sha256:" + hashlib.sha256(weights).hexdigest()
    assert manifest.size_bytes == sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def test_a_manifest_comes_back_from_its_json_with_the_same_digest(bundle):
    manifest = Manifest.of_directory(bundle)
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.digest == manifest.digest == digest_bytes(manifest.to_json())


def test_an_untouched_bundle_verifies_and_extra_files_do_not_matter(bundle):
    manifest = Manifest.of_directory(bundle)
    (bundle / "later").write_bytes(b"x")
    manifest.verify(bundle)


def test_every_file_that_differs_is_named_with_how(bundle):
    manifest = Manifest.of_directory(bundle)
    (bundle / "empty").unlink()
    (bundle / "part" / "notes.txt").write_bytes(b"nodes")
    with (bundle / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataLoss) as caught:
        manifest.verify(bundle)
    message = caught.value.message
    assert message.startswith("3 of 3 files differ")
    assert "empty: is missing" in message
    assert "part/notes.txt: has sha256:" in message
    assert "model.safetensors: has " in message
    assert caught.value.metadata["files"] == "empty,model.safetensors,part/notes.txt"


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_any_changed_byte_is_found(tmp_path_factory, position, value):
    folder = tmp_path_factory.mktemp("bytes")
    content = bytearray(b"octavo" * 100)
    (folder / "f").write_bytes(content)
    manifest = Manifest.of_directory(folder)
    content[position % len(content)] ^= value
    (folder / "f").write_bytes(content)
    if value:
        with pytest.raises(DataLoss):
            manifest.verify(folder)
    else:
        manifest.verify(folder)


def test_a_link_is_no_part_of_a_bundle(bundle):
    (bundle / "link").symlink_to(bundle / "empty")
    with pytest.raises(InvalidArgument, match="plain files"):
        Manifest.of_directory(bundle)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", ".", "a//b", "a/", "a\\b", "a\0", "x" * 256])
def test_paths_that_leave_the_bundle_are_refused(path):
    with pytest.raises(InvalidArgument, match="relative path"):
        Manifest(files=(entry(path),), tensors={})


@pytest.mark.parametrize(
    ("files", "tensors"),
    [
        ((entry("b"), entry("a")), {}),
        ((entry("a"), entry("a")), {}),
        ((entry(digest="sha256:0"),), {}),
        ((entry(digest=DIGEST.upper()),), {}),
        ((entry(size_bytes=-1),), {}),
        ((entry(size_bytes=1.0),), {}),
        ((), {"w": "md5:0"}),
        (tuple(entry(f"{n:05}") for n in range(1_001)), {}),
    ],
)
def test_what_is_no_manifest_cannot_be_made(files, tensors):
    with pytest.raises(InvalidArgument):
        Manifest(files=files, tensors=tensors)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"files":7,"tensors":{}}', b'{"files":[{"path":1}],"tensors":{}}', b"\xff", b"[" * 100_000],
)
def test_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(InvalidArgument):
        Manifest.from_json(text)


def test_canonical_json_is_one_text_for_one_value():
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_digests_of_large_files_are_those_of_their_bytes(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "f").write_bytes(content)
    assert digest_file(tmp_path / "f") == digest_bytes(content)
    array = np.frombuffer(content, np.uint8)
    write_safetensors(tmp_path / "t", {"x": array})
    assert digest_tensors(tmp_path / "t") == {"x": digest_bytes(content)}
