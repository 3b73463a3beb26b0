"""The order of a write, and what is left when it stops between any two of its steps."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection

from octavo.errors import Aborted, InvalidArgument
from services.registry import blobs, migrations, staging
from services.registry.blob_files import BlobFiles
from services.registry.change import Change
from services.registry.database import Database
from services.registry.staging import Announcement, StagedUpload

CONTENT = b"content" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ANNOUNCED = Announcement("an-upload-for-this-test", DIGEST, len(CONTENT))


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    files = BlobFiles(tmp_path, 0)
    files.prepare()
    return files


def test_bytes_are_synced_before_they_are_renamed_and_the_folder_after(
    files: BlobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = {"fdatasync": os.fdatasync, "fsync": os.fsync, "rename": Path.rename}

    def synced(descriptor: int) -> None:
        order.append(f"fdatasync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        real["fdatasync"](descriptor)

    def folder_synced(descriptor: int) -> None:
        order.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        real["fsync"](descriptor)

    def renamed(self: Path, target: Path) -> Path:
        order.append(f"rename {self.name} {target.name}")
        return real["rename"](self, target)

    upload = StagedUpload(files, ANNOUNCED)
    upload.open(0)
    upload.append(CONTENT)
    monkeypatch.setattr(os, "fdatasync", synced)
    monkeypatch.setattr(os, "fsync", folder_synced)
    monkeypatch.setattr(Path, "rename", renamed)
    upload.publish()
    upload.close()
    staged = ANNOUNCED.file_name
    assert (
        order
        == [
            f"fdatasync {staged}",
            "fsync sha256",  # the new folder, durable in the one above it
            f"rename {staged} {DIGEST}",
            f"fsync {DIGEST[:2]}",
        ]
    )


def stop_before_everything(files: BlobFiles) -> None:
    (files.staging / ANNOUNCED.upload).mkdir()


def stop_while_appending(files: BlobFiles) -> None:
    upload = StagedUpload(files, ANNOUNCED)
    upload.open(0)
    upload.append(CONTENT[:3000])
    os.close(upload._descriptor)


def stop_before_the_rename(files: BlobFiles) -> None:
    upload = StagedUpload(files, ANNOUNCED)
    upload.open(0)
    upload.append(CONTENT)
    os.close(upload._descriptor)


def stop_after_the_rename(files: BlobFiles) -> None:
    upload = StagedUpload(files, ANNOUNCED)
    upload.open(0)
    upload.append(CONTENT)
    upload._sync()
    files.publish(upload._path, DIGEST)
    os.close(upload._descriptor)


@pytest.mark.parametrize(
    ("stop", "committed"),
    [
        (stop_before_everything, None),
        (stop_while_appending, 3000),
        (stop_before_the_rename, len(CONTENT)),
        (stop_after_the_rename, None),
    ],
)
def test_wherever_it_stops_nothing_half_made_is_visible_and_it_goes_on(
    tmp_path: Path, files: BlobFiles, stop: object, committed: int | None
) -> None:
    stop(files)  # type: ignore[operator]
    database = Database(f"sqlite:///{tmp_path}/registry.db")
    database.migrate(migrations.upgrade)
    assert database._read(lambda connection: blobs.find(connection, files, DIGEST)) is None
    assert staging.committed_bytes(files, ANNOUNCED.upload) == committed
    if files.size(DIGEST) is None:
        upload = StagedUpload(files, ANNOUNCED)
        upload.open(committed or 0)
        if committed != len(CONTENT):
            upload.append(CONTENT[committed or 0 :])
        upload.publish()
        upload.close()
    assert files.has_digest(DIGEST)

    def add(connection: Connection) -> None:
        blobs.add_uploaded(Change.begin(connection, 1, "test"), DIGEST, len(CONTENT), ANNOUNCED.upload)

    database._write(add, True)
    assert database._read(lambda connection: blobs.get(connection, files, DIGEST)).size_bytes == len(CONTENT)
    database.close()


def test_one_stream_at_a_time_holds_an_upload(files: BlobFiles) -> None:
    first, second = StagedUpload(files, ANNOUNCED), StagedUpload(files, ANNOUNCED)
    first.open(0)
    with pytest.raises(Aborted):
        second.open(0)
    second.close()
    first.close()
    second.open(0)
    second.close()


def test_an_upload_that_was_dropped_takes_nothing_more(files: BlobFiles) -> None:
    upload = StagedUpload(files, ANNOUNCED)
    upload.open(0)
    with pytest.raises(InvalidArgument):
        upload.append(CONTENT + b"x")
    with pytest.raises(RuntimeError):
        upload.append(b"x")
    upload.close()


def test_a_sweep_removes_what_nobody_went_on_with(files: BlobFiles) -> None:
    stop_while_appending(files)
    assert staging.sweep(files, 60) == 0
    assert staging.sweep(files, 60, lambda: time.time() + 61) == 1
    assert staging.committed_bytes(files, ANNOUNCED.upload) is None


def test_an_upload_that_is_published_while_a_sweep_looks_at_it_does_not_end_the_sweep(
    files: BlobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old-upload-of-somebody", "published-meanwhile-1"):
        (files.staging / name).mkdir()
        os.utime(files.staging / name, (0, 0))
    list_folder = staging._staged

    def staged(folder: Path) -> list[Path]:
        if folder.name == "published-meanwhile-1":
            return [folder / "gone"]
        return list_folder(folder)

    monkeypatch.setattr(staging, "_staged", staged)
    assert staging.sweep(files, 60) == 1
    assert [folder.name for folder in files.staging.iterdir()] == ["published-meanwhile-1"]
