"""What holds for every command: help with examples that parse, one JSON on stdout, and one line with a
remedy when the server is away, the password wrong, a version not there, its scores, files or artefact store missing."""

import shlex
import shutil
import time

import pytest
import typer
from typer.testing import CliRunner

from sana_sprint import cli
from sana_sprint.registry import history, moves, store, versions
from tests.registry.conftest import NAME, Model, evaluation, repository, server
from tests.stores import free_port
from tests.test_cli import call, parsed, refused

__all__ = ["repository", "server"]
VERSION = f"models:/{NAME}/1"
AT_ONCE_S = 20  # of which imports take most
DIGEST = "c07c295ead54f32afbc3d796f94a0ea6.dir"
COMMANDS = {  # those that reach the registry; `generate` does by itself too, where no model is named
    "generate": ["a", "--model", f"models:/{NAME}@champion"],
    "sample": ["profiles/protocols/geneval.yaml", "pictures", "--model", f"models:/{NAME}@champion"],
    "register": ["student", "--name", NAME, "--licence", "MIT", "--description", "made by others"],
    "promote": [NAME],
    "rollback": [NAME],
    "history": [NAME],
    "audit": [NAME],
    "lineage": [VERSION],
    "uses": [DIGEST],
    "compare": [VERSION, f"models:/{NAME}@champion"],
    "transfer": [VERSION, "--to", "sqlite:///other/mlflow.db"],
    "follow": [NAME, "--command", "true", "--once"],
    "send": [],
}
EVERY = [pytest.param([name, *words], id=name) for name, words in COMMANDS.items()]
EVERY.append(pytest.param(["generate", "a"], id="generate by the champion"))
GROUP = typer.main.get_command(cli.app)


@pytest.fixture
def model(server, tmp_path):
    """The profile's model, with versions of small files."""
    (tmp_path / "versions").mkdir()
    return Model(server, NAME, tmp_path / "versions")


@pytest.fixture
def student(repository, sprint_folder):
    """A folder to register, which the commands above name."""
    (repository / "student").symlink_to(sprint_folder)


@pytest.fixture
def other(tmp_path, empty_store):
    """The words that name another store to transfer to."""
    (tmp_path / "other").mkdir()
    shutil.copy(empty_store, tmp_path / "other/mlflow.db")
    return ["--to", f"sqlite:///{tmp_path}/other/mlflow.db"]


def fault(*words):
    """Returns the one line on stderr of a command that ends with exit code 1 and says nothing on stdout."""
    answer = CliRunner().invoke(cli.app, [*words, "--json"])
    assert (answer.exit_code, answer.stdout) == (1, ""), answer.output
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_help_shows_examples_that_parse_and_the_exit_codes(name):
    command = GROUP.commands[name]
    *examples, codes = command.epilog.split("\n\n")
    told = " ".join(call(name, "--help").split())
    assert examples
    for example in examples:
        assert example in told
        program, called, *words = shlex.split(example.removeprefix("Example: "))
        assert (program, called) == ("sana-sprint", name)
        command.make_context(name, words)
    assert codes in told
    for code in ("0 done", "1 error", "2 no such option", "3 a check refuses"):
        assert code in codes
    assert "--json" in told


def test_an_option_that_there_is_not_ends_with_code_2():
    answer = CliRunner().invoke(cli.app, ["history", "--jsn"])
    assert (answer.exit_code, answer.stdout) == (2, "")


@pytest.mark.parametrize("words", EVERY)
def test_a_server_that_is_away_is_told_at_once(student, monkeypatch, words):
    """Whatever MLflow's own patience, which is a minute with this setting."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    began_at = time.monotonic()
    line = fault(*words)
    assert time.monotonic() - began_at < AT_ONCE_S
    assert "tracking server http://127.0.0.1:9 cannot be used" in line
    assert "check the address" in line


@pytest.mark.parametrize("words", EVERY)
def test_a_wrong_password_is_told_and_not_shown(student, team_server, anna, monkeypatch, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team_server)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another password")
    store.client.cache_clear()
    line = fault(*words)
    assert "401, not authenticated" in line
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    assert "another password" not in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["promote", NAME, "--version", "9"], "there is no version 9; there are: 1"),
        (["rollback", NAME], "no version has the alias 'champion'"),
        (["history", "nobody"], "nobody: no such registered model"),
        (["audit", "nobody"], "nobody: no such registered model"),
        (["lineage", f"models:/{NAME}/9"], "there is no version 9; there are: 1"),
        (["lineage", f"models:/{NAME}@staging"], f"no version of {NAME} has the alias 'staging'; there are: 1"),
        (["lineage", NAME], "name a version as models:/name@alias or models:/name/number"),
        (["uses", "data/nothing"], "data/nothing: no output or source that dvc.lock knows"),
        (["compare", VERSION, f"models:/{NAME}@staging"], "has the alias 'staging'; there are: 1"),
        (["transfer", f"models:/{NAME}/9", "--to", "sqlite:///other/mlflow.db"], "there is no version 9"),
        (["follow", "nobody", "--command", "true", "--once"], "nobody: no such registered model"),
        (
            ["follow", NAME, "--command", "true", "--once", "--alias", "champoin"],
            f"no version of {NAME} has the alias 'champoin' yet; there are: challenger",
        ),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_is_not_there_is_named(model, words, told):
    model.add()
    assert told in fault(*words)


def test_each_command_prints_one_json(model, student, other):
    """tests/registry/test_follow.py reads the lines of `follow --json`."""
    found = parsed("register", *COMMANDS["register"])
    assert (found["name"], found["version"], found["new"]) == (NAME, 1, True)
    assert parsed("register", *COMMANDS["register"])["new"] is False
    model.add(evaluation(0.4, 0.6))
    model.add(evaluation(0.5, 0.6, protocol="second"))
    assert parsed("promote", "--version", "2")["promoted"]
    assert parsed("lineage", VERSION)["made"] == "elsewhere"
    assert parsed("uses", DIGEST) == {"digest": DIGEST, "runs": [], "versions": []}
    assert parsed("transfer", f"models:/{NAME}/2", *other)["new"]
    found = parsed("compare", f"models:/{NAME}/2", f"models:/{NAME}/3")
    assert (found["before"]["name"], found["one_protocol"]) == (f"{NAME} version 2", False)
    (row,) = [
        row for row in found["rows"] if (row["network"], row["steps"], row["score"]) == ("student", "1", "overall")
    ]
    assert (row["before"]["value"], row["after"]["value"]) == (0.4, 0.5)
    assert row["difference"] == pytest.approx({"value": 0.1, "se": 0.02 * 2**0.5, "paired": False})


def test_a_version_without_scores_is_named_with_its_remedy(model):
    number = model.add()
    model.add()
    model.server.delete_model_version_tag(NAME, number, "scores")
    assert f"{VERSION}: no tag 'scores', so nothing to compare" in fault("compare", VERSION, f"models:/{NAME}/2")
    assert "version 1 has no tag 'scores'" in refused("promote", "--version", "1", code=3)
    model.server.delete_model_version_tag(NAME, "2", "protocol_digest")
    assert f"models:/{NAME}/2: no tag 'protocol_digest'" in fault("compare", f"models:/{NAME}/2", f"models:/{NAME}/2")


def test_a_secret_and_a_command_that_cannot_be_read_are_named(model, monkeypatch):
    model.add()
    monkeypatch.setenv("SANA_SPRINT_WEBHOOK_SECRET", "whsec_abc")
    told = fault("follow", NAME, "--url", "http://127.0.0.1:1", "--once")
    assert "SANA_SPRINT_WEBHOOK_SECRET: what follows whsec_ must be base64" in told
    assert '--command "say \'so" cannot be read: No closing quotation' in fault(
        "follow", NAME, "--command", "say 'so", "--once"
    )


def test_a_store_that_is_no_database_or_a_database_that_is_away_is_one_line(repository, tmp_path, monkeypatch):
    (tmp_path / "notes.db").write_text("these are notes, and no database " * 50)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/notes.db")
    assert f"tracking server sqlite:///{tmp_path}/notes.db cannot be used" in fault("history")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://anna:a-password@127.0.0.1:{free_port()}/mlflow")
    told = fault("history")
    assert "cannot be used ([Errno 111] Connection refused): check its address" in told
    assert "a-password" not in told


def test_files_that_are_gone_are_told_by_whoever_needs_them(model, other):
    model.add()
    call("promote")
    (model.place / "0" / versions.PIPELINE / "model_index.json").unlink()
    for words in (["transfer", VERSION, *other], ["promote", NAME, "--version", "1", "--reevaluate"]):
        assert f"{NAME} version 1: its files are gone (" in fault(*words)
    assert "its files are gone" in refused("generate", "a", "--model", f"models:/{NAME}@champion")
    assert parsed("lineage", f"models:/{NAME}@champion")["version"] == f"{NAME} version 1"


@pytest.fixture
def far(model, monkeypatch):
    """The champion and challenger of the model lies in an S3 store; this user has no keys to it."""
    model.add()
    tags = model.server.get_model_version(NAME, "1").tags
    model.server.create_model_version(NAME, "s3://nobody/model", tags=tags)
    weights = {"2": tags["weights_digest"]}
    moves.record(model.server, history.read(model.server, NAME), "promote", None, "2", "told", weights=weights)
    model.server.set_registered_model_alias(NAME, "challenger", "2")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_an_artefact_store_without_keys_or_without_answer_is_one_line(far, monkeypatch):
    words = [["promote", NAME], ["audit", NAME], ["generate", "a", "--model", f"models:/{NAME}@champion"]]
    for number, each in enumerate(words):
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{number + 2}")  # MLflow keeps a client of each
        line = refused(*each)
        assert "Unable to locate credentials: " in line
        assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    for key, value in {"ACCESS_KEY_ID": "anna", "SECRET_ACCESS_KEY": "a key of tests", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    line = refused("promote", NAME)
    assert 'Could not connect to the endpoint URL: "http://127.0.0.1:9' in line
    assert "a key of tests" not in line
