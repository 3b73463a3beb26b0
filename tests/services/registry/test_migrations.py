"""Migrations make exactly the tables that the code speaks of, from wherever they are run, as often as they are run."""

from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.registry import migrations
from services.registry.database import Database
from services.registry.schema import METADATA


def test_the_tables_are_those_of_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        database = Database(f"sqlite:///{tmp_path}/registry.db")
        database.migrate(migrations.upgrade)
        database.close()
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/registry.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_sqlite_is_told_to_be_durable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/registry.db")
    found = database._read(
        lambda connection: [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")
        ]
    )
    database.close()
    assert found == ["wal", 2]
