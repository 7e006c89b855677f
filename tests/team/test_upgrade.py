"""A team's store as MLflow 2 left it comes to this version by the runbook's lines: users, runs, versions, history."""

import dataclasses

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from sana_sprint.registry import audit, history, promote, store
from tests.registry.conftest import NAME, Model, evaluation, registered, repository, rules  # noqa: F401  fixtures
from tests.registry.test_promote import promoted
from tests.team import parts
from tests.team.runbook import commands
from tests.team.test_move import download

pytestmark = pytest.mark.e2e

BEFORE = "0584bdc529eb"  # of MLflow 2.22: no logged models, no webhooks, no workspaces
USERS_BEFORE = "8606fa83a998"  # its users: no roles, but what each owns; its word about its schema had another name
OWNED = "of ada"


def engine_of(team, database):
    return sa.create_engine(sa.make_url(team.postgres.uri(database)).set(password=team.postgres.password))


def older(team):
    """Makes the two databases with the tables that they had then, and returns their engines."""
    from alembic import command
    from mlflow.server.auth.db import utils as users
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    for name in ("older", "older_auth"):
        team.postgres.make_database(name)
    runs, auth = engine_of(team, "older"), engine_of(team, "older_auth")
    Base.metadata.create_all(runs)
    settings = _get_alembic_config(runs.url.render_as_string(hide_password=False))
    with runs.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, BEFORE)
    users.migrate(auth, USERS_BEFORE)
    with auth.begin() as connection:
        connection.execute(sa.text("drop table alembic_version_auth"))
        connection.execute(sa.text("create table alembic_version (version_num varchar(32) primary key)"))
        connection.execute(sa.text(f"insert into alembic_version values ('{USERS_BEFORE}')"))
    return runs, auth


def fill(source, target):
    """Copies all rows of the tables and columns that both have."""
    here, there = reflected(source), reflected(target)
    with source.connect() as read, target.begin() as write:
        for table in there.sorted_tables:
            if table.name in here.tables and not table.name.startswith("alembic"):
                columns = [here.tables[table.name].c[column.name] for column in table.columns]
                if rows := [row._asdict() for row in read.execute(sa.select(*columns))]:
                    write.execute(table.insert(), rows)
                    follow_on(write, table, rows)


def reflected(engine):
    """The tables of a database as it has them now."""
    tables = sa.MetaData()
    tables.reflect(engine)
    return tables


def owns(auth):
    """Gives ada what a server of then gave to who made a registered model."""
    with auth.begin() as write:
        row = "insert into registered_model_permissions (name, user_id, permission) "
        row += "select :name, id, 'MANAGE' from users where username = 'ada'"
        write.execute(sa.text(row), {"name": OWNED})


def follow_on(write, table, rows):
    """The numbers that the database gives out follow those of the rows, as where it gave them out itself."""
    column = table.autoincrement_column
    if column is not None and column.server_default is not None:
        last = max(row[column.name] for row in rows)
        write.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, column.name), max(last, 1))))


def content(engine, tables):
    """The rows of these tables, their columns alone."""
    with engine.connect() as one:
        return {
            table.name: sorted(repr(tuple(row)) for row in one.execute(sa.select(*table.columns)))
            for table in tables.sorted_tables
            if not table.name.startswith("alembic")
        }


@pytest.fixture
def model(team, registered, rules, tmp_path, monkeypatch):  # noqa: F811
    """A model whose two versions ada promoted, beside a student with runs, weights and a card."""
    for key, value in team.client("ada").items():
        monkeypatch.setenv(key, value)
    registered(evaluation(0.4, 0.6), weights="upgraded")
    (tmp_path / "versions").mkdir()
    one = Model(store.client(team.uri), "upgraded", tmp_path / "versions")
    one.server.create_registered_model(OWNED)
    for _ in range(2):
        one.add()
        promoted(one, rules)
    return one


def test_a_store_of_an_older_version_is_upgraded_with_nothing_lost(team, model, tmp_path):
    targets = older(team)
    sources = [engine_of(team, name) for name in ("mlflow", "mlflow_auth")]
    past = history.read(model.server, model.name)
    for source, target in zip(sources, targets, strict=True):
        fill(source, target)
    owns(targets[1])
    shapes = [reflected(target) for target in targets]
    before = [content(target, shape) for target, shape in zip(targets, shapes, strict=True)]
    assert len(before[0]["model_version_tags"]) > 20
    assert len(before[1]["users"]) >= 4
    databases = ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_DATABASE_URI")
    changed = {key: team.postgres.uri(one.url.database) for key, one in zip(databases, targets, strict=True)}
    port = parts.free_port()
    address = {"MLFLOW_PORT": str(port), "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}", "MLFLOW_WORKERS": "1"}
    server = parts.mlflow_server(tmp_path, team.server.environment | changed | address)
    for line in commands("Upgrade")[0].splitlines():
        team.run("bash", "-euc", line, **changed)
    assert [content(target, shape) for target, shape in zip(targets, shapes, strict=True)] == before

    upgraded = dataclasses.replace(team, server=server)
    try:
        server.start()
        goes_on(upgraded, past, tmp_path)
    finally:
        server.kill()


def goes_on(team, past, folder):
    """Ada, with her old password, finds what was there, and may change what she owns. A role lets her change the rest,
    as it does since there are roles."""
    from mlflow.exceptions import MlflowException

    client = MlflowClient(team.uri, team.uri)
    with team.member("ada"):
        assert history.read(client, past.name) == past
        assert audit.audit(client, past.name, files=True) == (past, [])
        newest = max(int(one.version) for one in client.search_model_versions(f"name='{NAME}'"))
        assert (download(client, str(newest), folder / "model") / "MLmodel").is_file()
        client.set_registered_model_tag(OWNED, "a", "b")
        with pytest.raises(MlflowException, match="Permission denied"):
            client.set_registered_model_tag(NAME, "a", "b")
    parts.add_user(team, "ada", "writer")
    with team.member("ada"):
        assert promote.rollback(client, past.name, why="draws squares")[:2] == ("2", "1")
        run = client.create_run(client.create_experiment("after the upgrade"))
        client.log_metric(run.info.run_id, "loss", 1.0)
        assert client.get_run(run.info.run_id).data.metrics == {"loss": 1.0}
