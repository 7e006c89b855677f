"""Every request that writes needs a user: all addresses that MLflow's server answers to, asked without one, as one that
it does not know, and some of each kind with a wrong password."""

import base64
import contextlib
import http.client
import re
import secrets
from unittest import mock

import pytest

from tests.team.test_server import ask, denied

pytestmark = pytest.mark.e2e
METHODS = {"POST", "PUT", "PATCH", "DELETE"}
OF_EACH_KIND = [
    ("POST", "/api/2.0/mlflow/runs/create"),
    ("POST", "/ajax-api/2.0/mlflow/registered-models/alias"),
    ("DELETE", "/api/2.0/mlflow/model-versions/delete"),
    ("POST", "/api/2.0/mlflow/users/create"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1"),
    ("PATCH", "/ajax-api/3.0/jobs/cancel/1"),
    ("POST", "/graphql"),
    ("POST", "/v1/traces"),
]


def served_by_flask():
    """(method, address) of what MLflow's Flask application takes, but for users and roles."""
    from mlflow.server import app

    return {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods & METHODS}


def served_by_fastapi():
    """The same of what does not pass through Flask: traces, gateway, jobs, assistant, artefacts, MCP servers."""
    from fastapi.openapi.utils import get_openapi
    from mlflow.server.fastapi_app import app

    paths = get_openapi(title="writes", version="0", routes=app.routes)["paths"]
    return {(method.upper(), path) for path, known in paths.items() for method in known if method.upper() in METHODS}


def served_to_users():
    """The addresses of users and roles, which the server adds when it starts, each with every method."""
    from mlflow.server.auth import routes

    paths = {path for name, path in vars(routes).items() if name.isupper()}
    return {(method, path) for path in paths for method in METHODS}


def writes():
    """(method, address) of every request that may write, with "1" for what an address leaves open."""
    found = served_by_flask() | served_by_fastapi() | served_to_users()
    return sorted({(method, re.sub(r"<[^>]+>|\{[^}]+\}", "1", path)) for method, path in found})


def let_in(team, requests, user=None):
    """{(method, address): status} of those requests with an empty body that were not answered with 401, by a user with
    a password that is wrong, or without one."""
    login = base64.b64encode(f"{user}:{secrets.token_urlsafe(24)}".encode()).decode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Basic {login}"} if user else {})
    found = {}
    for method, path in requests:  # by a connection each: over one that is kept each answer takes 40 ms more
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", team.server.port, timeout=60)) as server:
            server.request(method, path, "{}", headers)
            found[method, path] = server.getresponse().status
    return {request: status for request, status in found.items() if status != 401}


def rows(team):
    """How many rows each table of both databases holds."""
    names = "select relname from pg_stat_user_tables order by 1"
    return {
        (database, name): team.postgres.rows(f'select count(*) from "{name}"', database)
        for database in ("mlflow", "mlflow_auth")
        for (name,) in team.postgres.rows(names, database)
    }


def test_every_write_without_a_user_or_with_a_wrong_password_is_refused_and_changes_nothing(team):
    before, every = rows(team), writes()
    assert set(OF_EACH_KIND) <= set(every)
    assert len(every) > 300
    assert let_in(team, every) == {}
    assert let_in(team, every, "eve") == {}
    assert let_in(team, OF_EACH_KIND, "ada") == {}  # who is known: each takes half a second, for the hash
    assert rows(team) == before


def test_a_wrong_password_logs_and_reads_nothing_and_whether_the_server_lives_is_told_to_all(team):
    with mock.patch.dict(team.passwords, {"ada": "wrong"}):
        assert "not authenticated" in denied(team, "ada", "nobody", "c-model")
    assert ask(team, "/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert ask(team, "/health") == 200
