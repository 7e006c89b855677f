"""Moves an MLflow store from sqlite to an empty PostgreSQL database, and its artefacts to S3, with nothing lost:

    python mlflow/move_store.py data/mlflow/mlflow.db "$MLFLOW_BACKEND_STORE_URI" --artifacts FOLDER S3-ADDRESS

Both sides are counted and digested row by row, artefacts are read back; what differs stops it, and the target is left
empty. The source is only read, as it is at one moment; stop what writes to it. Run ids, versions, times, aliases stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import copy_artifacts
import sqlalchemy as sa

from sana_sprint.registry import history

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Row = tuple[Any, ...]

REVISIONS = "alembic_version"
NO_PLACES = (history.SOURCE, "runs:/", "models:/")  # an entry of a history has no artefacts; the others name a run's
ROWS_PER_INSERT = 1000
LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


class Rewriting:
    """Where artefacts lay and where they lie now; an address is rewritten, anything else stays as it is."""

    def __init__(self, old: Path | None, new: str | None) -> None:
        self.new = (new or "").rstrip("/")
        path = old.resolve() if old else None
        self.old = (path.as_uri(), str(path)) if path else ()

    def value(self, value: Any) -> Any:
        """Returns a value of a row, with the address of an artefact rewritten."""
        if isinstance(value, str):
            for old in self.old:
                if value == old or value.startswith(f"{old}/"):
                    return self.new + value.removeprefix(old)
        return value

    def row(self, table: sa.Table, row: Row) -> Row:
        """Returns a row of a table. MLflow makes an experiment Default in whatever folder it was started; unused, it
        moves along.
        """
        named = {column.name: self.value(value) for column, value in zip(table.columns, row, strict=True)}
        if self.old and table.name == "experiments" and named["experiment_id"] == 0:
            named["artifact_location"] = f"{self.new}/0"
        return tuple(named.values())


def rows(connection: sa.Connection, table: sa.Table) -> Iterator[Row]:
    """Yields the rows of a table, in no order."""
    answer = connection.execute(sa.select(table).execution_options(yield_per=ROWS_PER_INSERT))
    yield from (tuple(row) for row in answer)


def digest(content: Iterable[Row]) -> tuple[int, str]:
    """Returns how many rows there are and a digest of them that does not know their order."""
    count, total = 0, 0
    for row in content:
        text = json.dumps([repr(v) if isinstance(v, float) else v for v in row], sort_keys=True, default=str)
        total += int.from_bytes(hashlib.sha256(text.encode()).digest())
        count += 1
    return count, f"{total % 2**256:064x}"


def revision(connection: sa.Connection) -> str:
    """Returns which version of MLflow's tables these are."""
    return str(connection.execute(sa.text(f"select version_num from {REVISIONS}")).scalar_one())


def check_source(source: sa.Connection, target: sa.MetaData, head: str) -> None:
    """Raises ValueError when the source is of another version of MLflow, or has other tables or columns."""
    if revision(source) != head:
        raise ValueError(
            f"the source is of another version of MLflow (tables {revision(source)}, not {head}): copy it and run "
            "`mlflow db upgrade` on the copy first"
        )
    seen = sa.inspect(source)
    ours = {name: {column["name"] for column in seen.get_columns(name)} for name in seen.get_table_names()}
    theirs = {table.name: {column.name for column in table.columns} for table in target.tables.values()}
    if unlike := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise ValueError(f"tables {unlike} differ between the source and this version of MLflow")


def check_places(connection: sa.Connection, tables: dict[str, sa.Table], rewriting: Rewriting) -> None:
    """Raises ValueError for artefacts that lie elsewhere than in the folder that moves."""
    for name, column in LOCATIONS.items():
        table = tables[name]
        for row in rows(connection, table):
            place = rewriting.row(table, row)[list(table.columns.keys()).index(column)]
            if place and not place.startswith((rewriting.new, *NO_PLACES)):
                raise ValueError(f"{name}: artefacts at {place} lie outside the folder that moves")


def make_schema(target: str) -> None:
    """Makes MLflow's tables. Raises ValueError when the database is not empty."""
    engine = sa.create_engine(target)
    if found := sa.inspect(engine).get_table_names():
        raise ValueError(f"{target} is not empty ({len(found)} tables): give a new database")
    engine.dispose()
    words = [sys.executable, "-m", "mlflow", "db", "upgrade", target]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{target}: MLflow cannot make its tables: {done.stderr.strip().splitlines()[-1]}")


def set_sequences(connection: sa.Connection, table: sa.Table) -> None:
    """Lets the numbers that PostgreSQL gives out go on after the highest that is there."""
    for column in table.columns:
        if not isinstance(column.type, sa.Integer):
            continue
        name = connection.execute(
            sa.text("select pg_get_serial_sequence(:t, :c)"), {"t": f'"{table.name}"', "c": column.name}
        ).scalar()
        highest = connection.execute(sa.select(sa.func.max(column))).scalar()
        if name and highest is not None:
            connection.execute(sa.text("select setval(:name, :highest)"), {"name": name, "highest": highest})


def copy_table(source: sa.Connection, target: sa.Connection, table: sa.Table, rewriting: Rewriting) -> int:
    """Returns how many rows were copied. Raises ValueError unless the target holds just these."""
    columns = [column.name for column in table.columns if column.computed is None]
    batch: list[dict[str, Any]] = []
    for row in rows(source, table):
        named = dict(zip(table.columns.keys(), rewriting.row(table, row), strict=True))
        batch.append({name: named[name] for name in columns})
        if len(batch) == ROWS_PER_INSERT:
            target.execute(sa.insert(table), batch)
            batch = []
    if batch:
        target.execute(sa.insert(table), batch)
    set_sequences(target, table)
    wanted = digest(rewriting.row(table, row) for row in rows(source, table))
    found = digest(rows(target, table))
    if wanted != found:
        raise ValueError(f"{table.name}: {found[0]} rows in the target differ from the source's {wanted[0]}")
    return found[0]


def copy_rows(source: sa.Engine, target: sa.Engine, rewriting: Rewriting) -> dict[str, int]:
    """Copies all rows in one transaction and returns how many by table."""
    schema = sa.MetaData()
    schema.reflect(target)
    tables = [table for table in schema.sorted_tables if table.name != REVISIONS]
    with source.connect() as reader, target.begin() as writer:
        reader.exec_driver_sql("begin")  # one moment of the source
        check_source(reader, schema, revision(writer))
        if rewriting.old:
            check_places(reader, schema.tables, rewriting)
        for table in reversed(tables):
            writer.execute(sa.delete(table))  # what MLflow puts into new tables
        return {table.name: copy_table(reader, writer, table, rewriting) for table in tables}


def move(source: Path, target: str, artifacts: tuple[Path, str] | None) -> tuple[dict[str, int], int]:
    """Returns the number of rows by table and of artefacts that were moved. Raises ValueError when anything is not as
    it should be; the target is empty then.
    """
    address = f"{source.resolve().as_uri()}?mode=ro"
    reader = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(address, uri=True))
    make_schema(target)
    writer = sa.create_engine(target)
    try:
        files = copy_artifacts.copy(str(artifacts[0]), artifacts[1]) if artifacts else {}
        return copy_rows(reader, writer, Rewriting(*(artifacts or (None, None)))), len(files)
    except BaseException:
        made = sa.MetaData()
        made.reflect(writer)
        made.drop_all(writer)
        raise


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="file of the sqlite database")
    parser.add_argument("target", help="postgresql://USER@HOST:PORT/DATABASE; the password is PGPASSWORD")
    parser.add_argument("--artifacts", nargs=2, metavar=("FOLDER", "S3"), help="the folder of the artefacts moves too")
    chosen = parser.parse_args()
    if not chosen.source.is_file():
        parser.exit(1, f"error: {chosen.source}: no such file\n")
    artifacts = (Path(chosen.artifacts[0]), chosen.artifacts[1]) if chosen.artifacts else None
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    try:
        counts, files = move(chosen.source, chosen.target, artifacts)
    except (*copy_artifacts.FAULTS, sa.exc.SQLAlchemyError) as error:
        parser.exit(1, f"error: {' '.join(str(error).split()):.500}\n")
    for name, count in counts.items():
        if count:
            sys.stdout.write(f"{name:32} {count:8} rows, the same\n")
    sys.stdout.write(f"{'artefacts':32} {files:8} files, the same\nmoved {chosen.source} to {chosen.target}\n")


if __name__ == "__main__":
    main()
