import asyncio
import errno
import hashlib
import os
from contextlib import closing

import pytest

from octavo.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from octavo.v1.errors_pb2 import Reason
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


async def directory_of(cache, version):
    lease = await cache.lease(version)
    lease.close()
    return lease.directory


async def test_files_are_fetched_once(cache, blobs):
    version = version_of(blobs, one=b"1", two=b"22")
    directory = await directory_of(cache, version)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {"one": b"1", "two": b"22"}
    assert await directory_of(cache, version) == directory
    assert len(blobs.fetched) == 2


async def test_a_damaged_file_is_fetched_again(cache, blobs):
    version = version_of(blobs, one=b"1")
    directory = await directory_of(cache, version)
    (directory / "one").write_bytes(b"x")
    assert (await directory_of(cache, version) / "one").read_bytes() == b"1"


async def test_a_broken_download_leaves_no_directory(cache, blobs, tmp_path):
    version = version_of(blobs, one=b"1", two=b"2")
    blobs.failures = 1
    with pytest.raises(Unavailable):
        await directory_of(cache, version)
    assert [path.name[0] for path in (tmp_path / "bundles").iterdir()] == ["."]
    assert len(list((await directory_of(cache, version)).iterdir())) == 2


async def test_bytes_that_are_not_what_the_version_says_are_refused(cache, blobs):
    version = version_of(blobs, one=b"1")
    blobs.content[version.files[0].blob] = b"2"
    with pytest.raises(DataLoss, match="one"):
        await directory_of(cache, version)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil"])
async def test_no_path_leads_out_of_the_directory(cache, blobs, path, tmp_path):
    version = Version(files=[File(path=path, blob=blobs.add(b"1"), size_bytes=1)], manifest_digest="sha256:00")
    with pytest.raises(InvalidArgument):
        await directory_of(cache, version)
    assert not list(tmp_path.rglob("evil"))


async def test_what_is_not_used_is_removed(cache, blobs, tmp_path):
    old, new = version_of(blobs, one=b"1"), version_of(blobs, one=b"2")
    await directory_of(cache, old)
    kept = await cache.lease(new)
    cache.sweep()
    assert list((tmp_path / "bundles").iterdir()) == [kept.directory]
    kept.close()
    cache.sweep()
    assert not list((tmp_path / "bundles").iterdir())


async def test_what_another_server_uses_or_fetches_is_left_alone(cache, blobs, tmp_path):
    used, fetched = version_of(blobs, one=b"1"), version_of(blobs, one=b"2")
    other = BundleCache(tmp_path / "bundles", blobs.fetch)
    lease = await other.lease(used)
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def fetch_slowly(name, path):
        begun.set()
        await may_end.wait()
        await blobs.fetch(name, path)

    fetching = asyncio.create_task(BundleCache(tmp_path / "bundles", fetch_slowly).lease(fetched))
    await begun.wait()
    cache.sweep()
    may_end.set()
    with closing(lease), closing(await fetching) as fetched_lease:
        assert (lease.directory / "one").read_bytes() == b"1"
        assert (fetched_lease.directory / "one").read_bytes() == b"2"


async def test_two_servers_that_want_the_same_fetch_it_once(cache, blobs, tmp_path):
    version = version_of(blobs, one=b"1", two=b"2")
    other = BundleCache(tmp_path / "bundles", blobs.fetch)
    leases = await asyncio.gather(cache.lease(version), other.lease(version))
    for lease in leases:
        lease.close()
    assert leases[0].directory == leases[1].directory
    assert len(blobs.fetched) == 2
    assert not list(tmp_path.rglob("*.fetch"))


async def test_damaged_files_that_another_server_uses_are_replaced_under_it(cache, blobs, tmp_path):
    version = version_of(blobs, one=b"1")
    with closing(await BundleCache(tmp_path / "bundles", blobs.fetch).lease(version)) as lease:
        (lease.directory / "one").write_bytes(b"x")
        assert (await directory_of(cache, version) / "one").read_bytes() == b"1"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_with_what_it_lacks_and_unused_files_make_room(blobs, tmp_path, code):
    async def fetch(name, path):
        raise OSError(code, os.strerror(code))

    await directory_of(BundleCache(tmp_path / "bundles", blobs.fetch), version_of(blobs, one=b"1"))
    with pytest.raises(ResourceExhausted, match=r"no room for 2 bytes of files .* bytes left: ") as caught:
        await BundleCache(tmp_path / "bundles", fetch).lease(version_of(blobs, one=b"22"))
    assert caught.value.reason == Reason.REASON_BUNDLE_CACHE_FULL
    assert not list((tmp_path / "bundles").iterdir())


async def test_any_other_failure_of_the_disk_is_told_as_it_is(blobs, tmp_path):
    async def fetch(name, path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        await BundleCache(tmp_path / "bundles", fetch).lease(version_of(blobs, one=b"22"))
