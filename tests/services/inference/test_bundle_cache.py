import hashlib

import pytest

from octavo.errors import DataLoss, InvalidArgument, Unavailable
from octavo.v1.registry_pb2 import File, Version
from services.inference.bundle_cache import BundleCache


class Blobs:
    """Blobs by name, and which of them were fetched."""

    def __init__(self):
        self.content = {}
        self.fetched = []
        self.failures = 0

    def add(self, content):
        name = f"blobs/sha256:{hashlib.sha256(content).hexdigest()}"
        self.content[name] = content
        return name

    async def fetch(self, name, path):
        if self.failures and self.fetched:
            self.failures -= 1
            raise Unavailable(13, "gone")
        self.fetched.append(name)
        path.write_bytes(self.content[name])


def version_of(blobs, **files):
    return Version(
        files=[File(path=path, blob=blobs.add(data), size_bytes=len(data)) for path, data in files.items()],
        manifest_digest="sha256:" + hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest(),
    )


@pytest.fixture
def blobs():
    return Blobs()


@pytest.fixture
def cache(tmp_path, blobs):
    return BundleCache(tmp_path / "bundles", blobs.fetch)


async def test_files_are_fetched_once(cache, blobs):
    version = version_of(blobs, one=b"1", two=b"22")
    directory = await cache.directory(version)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {"one": b"1", "two": b"22"}
    assert await cache.directory(version) == directory
    assert len(blobs.fetched) == 2


async def test_a_damaged_file_is_fetched_again(cache, blobs):
    version = version_of(blobs, one=b"1")
    directory = await cache.directory(version)
    (directory / "one").write_bytes(b"x")
    assert (await cache.directory(version) / "one").read_bytes() == b"1"


async def test_a_broken_download_leaves_no_directory(cache, blobs, tmp_path):
    version = version_of(blobs, one=b"1", two=b"2")
    blobs.failures = 1
    with pytest.raises(Unavailable):
        await cache.directory(version)
    assert [path.name[0] for path in (tmp_path / "bundles").iterdir()] == ["."]
    assert len(list((await cache.directory(version)).iterdir())) == 2


async def test_bytes_that_are_not_what_the_version_says_are_refused(cache, blobs):
    version = version_of(blobs, one=b"1")
    blobs.content[version.files[0].blob] = b"2"
    with pytest.raises(DataLoss, match="one"):
        await cache.directory(version)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil"])
async def test_no_path_leads_out_of_the_directory(cache, blobs, path, tmp_path):
    version = Version(files=[File(path=path, blob=blobs.add(b"1"), size_bytes=1)], manifest_digest="sha256:00")
    with pytest.raises(InvalidArgument):
        await cache.directory(version)
    assert not list(tmp_path.rglob("evil"))


async def test_what_is_not_used_is_removed(cache, blobs, tmp_path):
    old, new = version_of(blobs, one=b"1"), version_of(blobs, one=b"2")
    await cache.directory(old)
    kept = await cache.directory(new)
    cache.keep_only({kept})
    assert list((tmp_path / "bundles").iterdir()) == [kept]
