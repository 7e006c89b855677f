"""A student made elsewhere is registered with a key to the object store that does not write: one line, no version."""

import pytest

from tests.registry.conftest import repository
from tests.team import parts
from tests.test_cli import refused

__all__ = ["repository"]
pytestmark = pytest.mark.e2e
NAME = "never-registered"
WORDS = ["--name", NAME, "--licence", "MIT", "--description", "made by others"]
KEY, SECRET = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"


def kept(team):
    """The objects of the bucket."""
    return {path for path in (team.buckets / parts.BUCKET).rglob("*") if path.is_file()}


@pytest.mark.parametrize("whose", ["a reader's", "nobody's"])
def test_a_key_that_does_not_write_is_told_in_one_line_and_makes_no_version(
    team, repository, sprint_folder, monkeypatch, whose
):
    key = team.reader_key if whose == "a reader's" else {KEY: "a wrong key", SECRET: "a wrong secret"}
    before = kept(team)
    with team.member("ada"):
        for name, text in key.items():
            monkeypatch.setenv(name, text)
        parts.forget_keys()
        line = refused("register", str(sprint_folder), *WORDS)
    assert line.startswith("error: stage register elsewhere: the artefact store cannot be used (Failed to upload ")
    assert ("AccessDenied" if whose == "a reader's" else "InvalidAccessKeyId") in line
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    assert key[SECRET] not in line
    assert kept(team) == before
    assert team.postgres.rows("select * from model_versions where name = %s", parameters=[NAME]) == []
    (status,) = team.postgres.rows("select status from runs order by start_time desc limit 1")[0]
    assert status == "FAILED"
