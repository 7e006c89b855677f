"""Files that an S3 store holds already are not sent to it again, and each version is whole without the others."""

import hashlib
import secrets
from pathlib import Path
from unittest import mock

import boto3
import numpy as np
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from sana_sprint import storage
from sana_sprint.registry import shared_objects
from tests.team import parts

MODELS = f"s3://{parts.BUCKET}/mlflow/1/models"
REGION = "eu-north-1"
BIG, OF_PARTS = 100_000, 17 * 2**20
SENT = ("PutObject", "UploadPart")


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """An S3 server, which this process may use."""
    words = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8),
        "AWS_DEFAULT_REGION": "eu-north-1",
    }
    port = parts.free_port()
    server = parts.s3_server(tmp_path_factory.mktemp("s3"), parts.plain_environment() | words, port)
    with mock.patch.dict("os.environ", words | {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}):
        server.start()
        parts.forget_keys()
        try:
            yield boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        finally:
            server.kill()
            parts.forget_keys()


@pytest.fixture
def folder(tmp_path):
    """A model: weights that go in parts, smaller ones, and a card."""
    place, random = tmp_path / "model", np.random.default_rng(0)
    (place / "text encoder").mkdir(parents=True)
    (place / "text encoder/weights").write_bytes(random.bytes(OF_PARTS))
    (place / "student").write_bytes(random.bytes(BIG))
    (place / "card").write_text("first")
    return place


class Sent:
    """Counts the bytes that requests of a client carry."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, request, **told) -> None:
        headers = request.headers
        self.total += int(headers.get("X-Amz-Decoded-Content-Length") or headers["Content-Length"])


def put(folder: Path, uri: str, *near: str) -> tuple[list[str], int]:
    """Puts a folder into the store as MLflow's client does; returns what was copied there, and the bytes sent."""
    with shared_objects.copies(*near):
        store = get_artifact_repository(uri)
    sent, events = Sent(), store._get_s3_client().meta.events
    for operation in SENT:
        events.register(f"before-send.s3.{operation}", sent)
    try:
        store.log_artifacts(str(folder), "artifacts")
    finally:
        for operation in SENT:
            events.unregister(f"before-send.s3.{operation}", sent)
    return [key.partition("/artifacts/artifacts/")[2] for key in store.copied], sent.total


def back(uri: str, place: Path) -> str:
    """The digest of what a stock client reads."""
    return storage.digest(Path(download_artifacts(f"{uri}/artifacts", dst_path=str(place))))


def test_a_second_version_sends_what_it_does_not_share_and_outlives_the_first(s3, folder, tmp_path):
    one, two = (f"{MODELS}/m-{name}/artifacts" for name in ("one", "two"))
    assert put(folder, one) == ([], OF_PARTS + BIG + len("first"))
    (folder / "student").write_bytes(np.random.default_rng(1).bytes(BIG))  # of the same length
    (folder / "card").write_text("other")
    assert put(folder, two) == (["text encoder/weights"], BIG + len("other"))
    for item in s3.list_objects_v2(Bucket=parts.BUCKET, Prefix="mlflow/1/models/m-one/")["Contents"]:
        s3.delete_object(Bucket=parts.BUCKET, Key=item["Key"])
    assert back(two, tmp_path / "back") == storage.digest(folder)


def test_another_store_on_the_same_server_takes_them_from_the_address_told(s3, folder, tmp_path):
    s3.create_bucket(Bucket="prod", CreateBucketConfiguration={"LocationConstraint": REGION})
    here, there = f"{MODELS}/m-dev/artifacts", "s3://prod/mlflow/7/models/m-prod/artifacts"
    put(folder, here)
    assert put(folder, there, "file:///elsewhere", here) == (["student", "text encoder/weights"], len("first"))
    assert back(there, tmp_path / "back") == storage.digest(folder)


def test_what_changed_or_went_meanwhile_is_sent(s3, folder, tmp_path):
    here, there = f"{MODELS}/m-here/artifacts", "s3://sana-sprint/elsewhere/models/m-there/artifacts"
    put(folder, here)
    with shared_objects.copies(here):
        store = get_artifact_repository(there)
    stale = store._held()
    s3.put_object(Bucket=parts.BUCKET, Key="mlflow/1/models/m-here/artifacts/artifacts/student", Body=b"x" * BIG)
    s3.delete_object(Bucket=parts.BUCKET, Key="mlflow/1/models/m-here/artifacts/artifacts/text encoder/weights")
    with mock.patch.object(store, "_held", return_value=stale):
        store.log_artifacts(str(folder), "artifacts")
    assert store.copied == []
    assert back(there, tmp_path / "back") == storage.digest(folder)


def test_a_place_that_may_not_be_read_is_no_obstacle(s3, folder):
    absent = "s3://another-bucket/models/m-1/artifacts"
    assert put(folder, "s3://sana-sprint/alone/models/m-1/artifacts", absent)[0] == []


def test_digests_are_those_of_s3_s_own_objects(tmp_path):
    """Amazon's rule: MD5, in parts the MD5 of the parts' MD5s and their number."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * shared_objects.PART_BYTES + b"b")
    parted = hashlib.md5(b"a" * shared_objects.PART_BYTES).digest() + hashlib.md5(b"b").digest()
    assert shared_objects.etags(path) == {
        hashlib.md5(path.read_bytes()).hexdigest(),
        f"{hashlib.md5(parted).hexdigest()}-2",
    }


def test_mlflow_has_its_own_class_again_afterwards():
    plain = type(get_artifact_repository(f"{MODELS}/m/artifacts"))
    with pytest.raises(AssertionError), shared_objects.copies():
        assert type(get_artifact_repository(f"{MODELS}/m/artifacts")) is plain
    assert type(get_artifact_repository(f"{MODELS}/m/artifacts")) is plain
