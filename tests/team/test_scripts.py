"""The scripts of mlflow/ tell in one line which variable is missing, which key is, and which store does not answer."""

import runpy
import sys

import pytest

from tests.team import parts

NOBODY = "http://127.0.0.1:9"
S3 = {"MLFLOW_S3_ENDPOINT_URL": NOBODY, "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}
KEY = {"AWS_ACCESS_KEY_ID": "a key", "AWS_SECRET_ACCESS_KEY": "a secret of tests", "AWS_MAX_ATTEMPTS": "1"}
ROOT = {"MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://a-bucket/mlflow"}
SERVER = {"MLFLOW_TRACKING_URI": NOBODY, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
FOLDER = str(parts.ROOT / "infra")


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        (["make_bucket.py"], S3 | KEY, "MLFLOW_DEFAULT_ARTIFACT_ROOT is '', not s3://BUCKET/PATH"),
        (["make_bucket.py"], S3 | KEY | ROOT, f'Could not connect to the endpoint URL: "{NOBODY}/a-bucket"'),
        (["copy_artifacts.py", FOLDER, "s3://a-bucket/a"], S3, "Unable to locate credentials"),
        (["copy_artifacts.py", "no-such-folder", "elsewhere"], {}, "no-such-folder: there is nothing"),
        (["add_user.py", "eve", "writer"], {}, "MLFLOW_TRACKING_URI is not set"),
        (["add_user.py", "--password"], SERVER, "MLFLOW_TRACKING_USERNAME is not set"),
        (["add_user.py", "eve", "writer"], SERVER, f"API request to {NOBODY}/api/2.0/mlflow/users/get failed"),
    ],
)
def test_what_is_missing_is_told_in_one_line(words, variables, told, tmp_path, monkeypatch, capsys):
    for name in (*S3, *KEY, *ROOT, *SERVER, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("HOME", str(tmp_path))  # no keys in ~/.aws
    parts.forget_keys()
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(parts.ROOT / "mlflow" / words[0]), run_name="__main__")
    line = capsys.readouterr().err or f"{ended.value.code}\n"  # Python prints a text that it ends with
    assert line.startswith("error: ")
    assert told in line
    assert line.count("\n") == 1
    assert "a secret of tests" not in line
    assert ended.value.code not in (0, None)
