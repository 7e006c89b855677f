"""The console command: what each command prints and writes, and its one line and exit code when it cannot."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from sana_sprint import cli, config, storage
from tests.registry.conftest import NAME, SIZE, evaluation, registered, repository, server

__all__ = ["registered", "repository", "server"]


def call(*words, code=0):
    """Returns what a command printed; the error line comes last."""
    answer = CliRunner().invoke(cli.app, list(words))
    assert answer.exit_code == code, answer.output
    assert "Traceback" not in answer.output
    return answer.output


def parsed(*words, code=0):
    """Returns the JSON that a command printed on stdout, and nothing beside it."""
    answer = CliRunner().invoke(cli.app, [*words, "--json"])
    assert answer.exit_code == code, answer.output
    return json.loads(answer.stdout)


def refused(*words, code=1):
    """Returns the last line of a command that cannot do what it is told, or of a check that refuses."""
    last = call(*words, code=code).strip().splitlines()[-1]
    assert last.startswith("error: " if code == 1 else "refused: ")
    return last


def test_generate_draws_with_the_newest_student_and_names_the_file(repository, sprint_folder):
    student = repository / "data/models/student/base"
    student.parent.mkdir(parents=True)
    student.symlink_to(sprint_folder)
    told = call("generate", "Two red circles!", "--steps", "1", "--seed", "3")
    assert told.startswith("two-red-circles-1-steps-seed-3.png: 64 x 64 px, 1 steps, seed 3, by data/models")
    assert Image.open(repository / "two-red-circles-1-steps-seed-3.png").size == (64, 64)
    told = parsed("generate", "a red circle", "--out", "one.png", "--model", str(student))
    assert told == {"file": "one.png", "width_px": 64, "height_px": 64, "steps": 4, "seed": 0, "model": str(student)}


def test_generate_prefers_the_champion_and_takes_a_file_name(registered, repository):
    registered(evaluation(0.3, 0.5))
    call("promote", NAME)
    told = call("generate", "a red circle", "--out", "out/one.png", "--guidance", "2.0")
    assert f"by models:/{NAME}@champion" in told
    assert Image.open(repository / "out/one.png").format == "PNG"


def test_a_folder_of_ones_own_needs_no_server(repository, sprint_folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert f"by {sprint_folder}" in call("generate", "a red circle", "--steps", "1", "--model", str(sprint_folder))


def test_generate_refuses_by_name(repository, sprint_folder):
    assert "no model_index.json there" in refused("generate", "a red circle")
    assert "no time list for 3 steps" in refused("generate", "a", "--model", str(sprint_folder), "--steps", "3")
    assert "the prompt is empty" in refused("generate", " ", "--model", str(sprint_folder))
    assert "models:/none@champion" in refused("generate", "a", "--model", "models:/none@champion")


def test_use_switches_the_profile_and_keeps_comments(repository):
    (repository / "profiles/mine.yaml").write_text((repository / "profiles/demo.yaml").read_text())
    assert "profile: mine" in call("use", "mine")
    assert parsed("use", "mine") == {"profile": "mine", "source": None}  # a profile of scenes draws its own
    assert (repository / "params.yaml").read_text() == "# the profile in use\nprofile: mine\n"
    line = refused("use", "minee")
    assert "no profile 'minee'; there are: " in line
    assert "demo, " in line
    assert config.profile() == "mine"


def test_recover_names_what_it_puts_right(repository):
    assert (call("recover"), parsed("recover")) == ("", {"put_right": []})
    (repository / ".dvc/tmp").mkdir(parents=True)
    (repository / ".dvc/tmp/rwlock").write_text("{")
    assert parsed("recover") == {"put_right": [".dvc/tmp/rwlock: was cut, removed"]}
    (repository / ".dvc/tmp/rwlock").write_text("{")
    assert call("recover") == ".dvc/tmp/rwlock: was cut, removed\n"


def test_outside_a_repository_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no params.yaml here or above" in refused("summary")


@pytest.fixture
def finished(registered, repository):
    """A repository after a whole run, as summary sees it."""
    registration = registered(evaluation(0.3, 0.5))
    storage.write_json(repository / f"data/reports/registration/{SIZE}.json", registration)
    return repository


def test_summary_tells_places_scores_versions_and_next_commands(finished):
    told = call("summary")
    for part in ("data/reports/index.html", "data/grids", "data/mlflow/mlflow.db", "make ui"):
        assert part in told
    assert f"registered: {NAME} version 1, alias challenger" in told
    assert f"sana-sprint promote {NAME}" in told
    assert 'sana-sprint generate "two red circles" --steps 1' in told
    scores = [line.split("│")[1:-1] for line in told.splitlines() if line.count("│") == 6]
    assert [[cell.strip() for cell in row] for row in scores] == [
        [SIZE, "teacher", "20", "overall", "0.700 ± 0.020"],
        [SIZE, "student", "1", "overall", "0.300 ± 0.020"],
        [SIZE, "student", "2", "overall", "0.400 ± 0.020"],
        [SIZE, "student", "4", "overall", "0.500 ± 0.020"],
    ]


def test_summary_as_json_names_the_same(finished):
    told = parsed("summary")
    assert (told["profile"], told["report"]) == ("demo", str(finished / "data/reports/index.html"))
    assert told["registered"] == [{"name": NAME, "version": 1, "alias": "challenger"}]
    assert [(one["network"], one["steps"], one["value"], one["se"]) for one in told["scores"]] == [
        ("teacher", "20", 0.7, 0.02),
        ("student", "1", 0.3, 0.02),
        ("student", "2", 0.4, 0.02),
        ("student", "4", 0.5, 0.02),
    ]


def test_summary_asks_for_a_caption_of_the_profiles_own_data(finished):
    from pyarrow import Table, parquet

    told = parsed("use", "digits")
    assert told == {"profile": "digits", "source": {"folder": "data/source/digits", "told": "written"}}
    (finished / "data/raw").mkdir(parents=True)
    parquet.write_table(Table.from_pydict({"caption": ['the digit "seven"']}), finished / "data/raw/manifest.parquet")
    assert """generate "the digit 'seven'" --steps 1""" in call("summary")


def test_summary_before_the_first_run_says_what_to_do(repository):
    assert "run `dvc repro` first" in refused("summary")


def test_a_broken_score_file_is_named(finished):
    (finished / f"data/metrics/evaluate/{SIZE}.json").write_text(json.dumps({})[:1])
    assert f"{SIZE}.json: not valid JSON" in refused("summary")
