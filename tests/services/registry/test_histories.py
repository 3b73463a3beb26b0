"""The registry against a model of it in dictionaries: any order of creations, moves and deletions, and restarts."""

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Names
from hypothesis.stateful import RuleBasedStateMachine, consumes, invariant, precondition, rule
from sqlalchemy import Connection

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, OctavoError
from octavo.v1.registry_pb2 import (
    CreateVersionRequest,
    DeleteAliasRequest,
    DeleteModelRequest,
    DeleteVersionRequest,
    File,
    ListModelsRequest,
    SetAliasRequest,
    Version,
)
from services.registry import aliases, audit, blobs, migrations, models, versions
from services.registry.blob_files import BlobFiles
from services.registry.change import Change
from services.registry.database import Database
from services.registry.staging import Announcement, StagedUpload, committed_bytes

MODELS = st.sampled_from(["poet", "critic"])
NUMBERS = st.integers(1, 6)
ALIASES = st.sampled_from(["champion", "challenger"])
CONTENT = b"0123456789" * 3


class Catalog(RuleBasedStateMachine):
    """Versions, aliases and models."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.files = BlobFiles(Path(self.folder.name), 0)
        self.files.prepare()
        self.time_ns = 0
        self.last: dict[str, int] = {}
        self.versions: dict[str, set[int]] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.start()
        self.digest = hashlib.sha256(CONTENT).hexdigest()
        with self.files.new_file() as new:
            new.file.write(CONTENT)
            new.publish()
        self.change(lambda change: blobs.add(change, self.digest, len(CONTENT)))

    def start(self) -> None:
        self.database = Database(f"sqlite:///{self.folder.name}/registry.db", reader_count=1)
        self.database.migrate(migrations.upgrade)

    def change(self, work: object) -> object:
        self.time_ns += 1

        def run(connection: Connection) -> object:
            return work(Change.begin(connection, self.time_ns, "test"))  # type: ignore[operator]

        return self.database._write(run, True)

    def refused(self, work: object, *kinds: type[OctavoError]) -> None:
        with pytest.raises(kinds):
            self.change(work)

    @rule(model=MODELS)
    def create_version(self, model: str) -> None:
        file = File(path="a", blob=f"blobs/sha256:{self.digest}", size_bytes=len(CONTENT))
        request = CreateVersionRequest(parent=f"models/{model}", version=Version(files=[file]))
        made = self.change(lambda change: versions.create(change, self.files, request))
        self.last[model] = self.last.get(model, 0) + 1
        self.versions.setdefault(model, set()).add(self.last[model])
        assert made.name == f"models/{model}/versions/{self.last[model]}"

    @rule(model=MODELS, alias=ALIASES, number=NUMBERS)
    def set_alias(self, model: str, alias: str, number: int) -> None:
        request = SetAliasRequest(name=f"models/{model}/aliases/{alias}", version=f"models/{model}/versions/{number}")
        if number in self.versions.get(model, ()):
            self.change(lambda change: aliases.set_alias(change, request))
            self.aliases[model, alias] = number
        else:
            self.refused(lambda change: aliases.set_alias(change, request), NotFound)

    @rule(model=MODELS, alias=ALIASES)
    def delete_alias(self, model: str, alias: str) -> None:
        request = DeleteAliasRequest(name=f"models/{model}/aliases/{alias}")
        if self.aliases.pop((model, alias), None):
            self.change(lambda change: aliases.delete_alias(change, request))
        else:
            self.refused(lambda change: aliases.delete_alias(change, request), NotFound)

    @rule(model=MODELS, number=NUMBERS)
    def delete_version(self, model: str, number: int) -> None:
        request = DeleteVersionRequest(name=f"models/{model}/versions/{number}")
        if number not in self.versions.get(model, ()):
            self.refused(lambda change: versions.delete_version(change, request), NotFound)
        elif number in [at for (of, _), at in self.aliases.items() if of == model]:
            self.refused(lambda change: versions.delete_version(change, request), FailedPrecondition)
        else:
            self.change(lambda change: versions.delete_version(change, request))
            self.versions[model].remove(number)

    @rule(model=MODELS, force=st.booleans())
    def delete_model(self, model: str, force: bool) -> None:
        request = DeleteModelRequest(name=f"models/{model}", force=force)
        if model not in self.versions:
            self.refused(lambda change: models.delete_model(change, request), NotFound)
        elif self.versions[model] and not force:
            self.refused(lambda change: models.delete_model(change, request), FailedPrecondition)
        else:
            self.change(lambda change: models.delete_model(change, request))
            del self.versions[model]
            self.aliases = {key: number for key, number in self.aliases.items() if key[0] != model}

    @rule()
    def restart(self) -> None:
        self.database.close()
        self.start()

    @invariant()
    def holds_what_the_dictionaries_hold(self) -> None:
        listed = self.database._read(lambda connection: models.list_models(connection, ListModelsRequest()))
        assert {model.name.removeprefix("models/"): model.version_count for model in listed.models} == {
            model: len(numbers) for model, numbers in self.versions.items()
        }
        seen = {
            (alias.name.split("/")[1], alias.name.split("/")[3]): int(alias.version.rpartition("/")[2])
            for model in listed.models
            for alias in model.aliases
        }
        assert seen == self.aliases
        for model, numbers in self.versions.items():
            if numbers:
                newest = self.database._read(
                    lambda connection, model=model: versions.resolve(connection, f"models/{model}")
                )
                assert newest.name == f"models/{model}/versions/{max(numbers)}"

    def teardown(self) -> None:
        assert self.database._read(audit.verify).valid
        self.database.close()
        self.folder.cleanup()


class Uploads(RuleBasedStateMachine):
    """One upload of 30 bytes, written in any pieces, from any offset, given up and taken up again at any time."""

    streams: Names[StagedUpload] = Names("streams")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.files = BlobFiles(Path(self.folder.name), 0)
        self.files.prepare()
        self.announced = Announcement("an-upload-of-thirty-bytes", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
        self.there: bytes | None = None
        self.open: StagedUpload | None = None

    @precondition(lambda self: self.open is None)
    @rule(target=streams, offset=st.integers(0, len(CONTENT)))
    def begin(self, offset: int) -> StagedUpload:
        staged = StagedUpload(self.files, self.announced)
        if offset > len(self.there or b""):
            with pytest.raises(OctavoError):
                staged.open(offset)
            staged.close()
            self.there = self.there or b""
            return staged
        staged.open(offset)
        self.there = (self.there or b"")[:offset]
        self.open = staged
        return staged

    @precondition(lambda self: self.open is not None)
    @rule(count=st.integers(0, 12), is_damaged=st.booleans())
    def append(self, count: int, is_damaged: bool) -> None:
        right = CONTENT[len(self.there) : len(self.there) + count]
        chunk = b"x" * count if is_damaged else right
        if len(self.there) + len(chunk) > len(CONTENT):
            with pytest.raises(InvalidArgument):
                self.open.append(chunk)
            self.there, self.open = None, None
        else:
            self.open.append(chunk)
            self.there += chunk

    @precondition(lambda self: self.open is not None)
    @rule()
    def publish(self) -> None:
        if self.there == CONTENT:
            self.open.publish()
            assert self.files.has_digest(self.announced.digest)
            self.there = None
        else:
            with pytest.raises(InvalidArgument):
                self.open.publish()
            if len(self.there) == len(CONTENT):
                self.there = None
        if self.there is None:
            self.open.close()
            self.open = None

    @rule(stream=consumes(streams))
    def close(self, stream: StagedUpload) -> None:
        stream.close()
        if stream is self.open:
            self.open = None

    @invariant()
    def has_on_disk_what_was_written(self) -> None:
        assert committed_bytes(self.files, self.announced.upload) == (None if self.there is None else len(self.there))
        size = self.files.size(self.announced.digest)
        assert size in (None, len(CONTENT))

    def teardown(self) -> None:
        if self.open:
            self.open.close()
        self.folder.cleanup()


Catalog.TestCase.settings = settings(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
Uploads.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCatalog = Catalog.TestCase
TestUploads = Uploads.TestCase
