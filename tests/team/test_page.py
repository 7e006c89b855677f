"""The page of the team's server in a real browser: it asks for a user, and shows one who may look the pictures that a
member's run has put into S3."""

import os
from unittest import mock

import pytest
from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import expect

from sana_sprint.registry import track
from tests import dashboard
from tests.registry.conftest import SIZE, repository
from tests.team import leaks, parts
from tests.team.test_secrets import with_login
from tests.team.test_server import ask

__all__ = ["repository"]
pytestmark = pytest.mark.e2e
SERIES = f"distill_{SIZE}/1_step"


@pytest.fixture
def run(team, repository):
    """A stage that `ada` ran here, with pictures over its iterations, by an address that holds the password."""
    address = {"MLFLOW_TRACKING_URI": with_login(team, "ada")}
    with team.member("ada"), mock.patch.dict(os.environ, address), track.stage("distill", SIZE) as run:
        for step in (0, 6, 12):
            run.picture(Image.new("RGB", (64, 64), (20 * step, 90, 60)), SERIES, step)
    return run


def test_the_page_asks_for_a_user_and_shows_pictures_of_s3_with_a_slider(team, run):
    login = {"username": "cleo", "password": team.passwords["cleo"]}
    with team.member("cleo"):
        info = MlflowClient(team.uri).get_run(run.parent_id).info
        assert info.artifact_uri.startswith(f"s3://{parts.BUCKET}/")
        command = info.run_name.partition(" ")[2]  # "12:34:56 by hand": others ran stages by hand on this server too
        with dashboard.opened(team.uri, team.uri, "sana-sprint-demo", http_credentials=login) as shown:
            assert shown.command(command).info.run_id == run.parent_id
            pages = [shown.page.content()]
            assert len(set(shown.pictures(command, SERIES))) == 3
            pages.append(shown.page.content())
            shown.open(f"#/experiments/{shown.experiment_id}/runs/{run.run_id}")
            expect(shown.page.get_by_text(run.run_id).first).to_be_visible()
            pages.append(shown.page.content())
            assert shown.faults == []
    assert command in pages[0]
    words = {word.decode() for secret in team.secrets() for word in leaks.written(secret)}
    assert not [word for word in words for page in pages if word in page]
    assert ask(team, "/") == 401
