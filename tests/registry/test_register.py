"""Registration: one version per set of weights, with signature, card, licence, lineage and scores."""

import base64
import hashlib
import io
import json
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model, validate_schema
from PIL import Image

from sana_sprint import config, storage
from sana_sprint.registry import draw, lineage, measured, package, store, track, versions
from tests.registry.conftest import NAME, SIZE, TIMES, evaluation

ROUNDING = 2  # of 255: processors multiply matrices of other sizes in another order


def picture(png):
    return Image.open(io.BytesIO(base64.b64decode(png)))


def apart(one, other):
    """The largest difference of a pixel between two pictures, of 255."""
    pixels = [np.asarray(picture(png), dtype=int) for png in (one, other)]
    return np.abs(pixels[0] - pixels[1]).max()


def model(repository, uri):
    mlflow.set_tracking_uri(store.tracking_uri(repository))
    return mlflow.pyfunc.load_model(uri)


def test_the_same_weights_make_one_version_and_new_weights_a_second(registered, server):
    first = registered(evaluation(0.3, 0.5))
    again = registered(evaluation(0.3, 0.5))
    other = registered(evaluation(0.3, 0.5), weights="second")
    assert [one["version"] for one in (first, again, other)] == [1, 1, 2]
    assert [one["new"] for one in (first, again, other)] == [True, False, True]
    assert str(server.get_model_version_by_alias(NAME, "challenger").version) == "2"
    assert len(server.search_model_versions(f"name = '{NAME}'")) == 2


def test_the_times_evaluated_travel_with_the_version_and_others_make_a_new_one(registered, repository, server):
    folder, _ = draw.folder_of(registered(evaluation(0.3, 0.5))["uri"], None)
    assert storage.read_json(folder / "sampling.json")["times"] == TIMES
    student = repository / "data/models/student" / SIZE
    assert storage.read_json(student / "sampling.json")["times"] != TIMES
    other = evaluation(0.3, 0.5) | {"times": TIMES | {"2": [1.5708, 0.9, 0.0]}}
    again = registered(other)
    assert (again["version"], again["new"]) == (2, True)
    weights = {v.tags["weights_digest"] for v in server.search_model_versions(f"name = '{NAME}'")}
    assert len(weights) == 1


def test_the_console_draws_by_the_schedule_of_a_student_of_the_repository(registered, repository):
    registered(evaluation(0.3, 0.5))
    student = repository / "data/models/student" / SIZE
    before = draw.picture(student, "a red circle", 2, 0, None)
    storage.write_json(repository / f"data/models/schedule/{SIZE}.json", {"times": TIMES | {"2": [1.5708, 0.3, 0.0]}})
    assert draw.picture(student, "a red circle", 2, 0, None).tobytes() != before.tobytes()
    copied = repository / "elsewhere"
    shutil.copytree(student, copied)
    assert draw.picture(copied, "a red circle", 2, 0, None).tobytes() == before.tobytes()


def test_scores_of_a_new_protocol_replace_those_of_the_same_weights(registered, server):
    registered(evaluation(0.3, 0.5))
    registered(evaluation(0.25, 0.46, protocol="second"))
    tags = server.get_model_version(NAME, "1").tags
    assert tags["protocol_digest"] == evaluation(0.25, 0.46, protocol="second")["protocol_digest"]
    assert json.loads(tags["scores"])["student"]["1"]["overall"] == [0.25, 0.02]


def test_registered_model_answers_with_pictures_of_the_asked_size(registered, repository):
    uri = registered(evaluation(0.3, 0.5))["uri"]
    table = pd.DataFrame({"prompt": ["a red circle", "two blue squares"]})
    answers = model(repository, uri).predict(table, params={"steps": 1, "height": 96, "width": 64, "seed": 7})
    assert [picture(png).size for png in answers["png"]] == [(64, 96), (64, 96)]
    assert answers["png"][0] != answers["png"][1]


def test_a_seed_draws_one_picture_in_any_batch_and_from_the_console(registered, repository):
    loaded = model(repository, registered(evaluation(0.3, 0.5))["uri"])
    both = loaded.predict(pd.DataFrame({"prompt": ["two blue squares", "a red circle"]}), params={"steps": 2})
    alone = loaded.predict(pd.DataFrame({"prompt": ["a red circle"]}), params={"steps": 2})
    other = loaded.predict(pd.DataFrame({"prompt": ["a red circle"]}), params={"steps": 2, "seed": 1})
    mine = draw.picture(draw.folder_of(f"models:/{NAME}@challenger", None)[0], "a red circle", 2, 0, None)
    assert apart(both["png"][1], alone["png"][0]) <= ROUNDING
    assert apart(other["png"][0], alone["png"][0]) > 5 * ROUNDING
    assert picture(alone["png"][0]).tobytes() == mine.tobytes()


def test_a_step_count_without_times_is_refused_by_name(registered, repository):
    loaded = model(repository, registered(evaluation(0.3, 0.5))["uri"])
    with pytest.raises(ValueError, match="no time list for 3 steps; it has: 1, 2, 4"):
        loaded.predict(pd.DataFrame({"prompt": ["a red circle"]}), params={"steps": 3})


def test_signature_defaults_come_from_sampling_json(registered, repository):
    signature = model(repository, registered(evaluation(0.3, 0.5))["uri"]).metadata.signature
    defaults = {param.name: param.default for param in signature.params}
    assert defaults == {"steps": 4, "seed": 0, "guidance": 3.0, "height": 64, "width": 64}
    assert signature.inputs.input_names() == ["prompt"]
    assert signature.outputs.input_names() == ["png"]


def test_the_example_is_a_prompt_that_was_scored_and_fits_the_signature(registered, server):
    folder = versions.fetched(server, versions.resolve(server, registered(evaluation(0.3, 0.5))["uri"]))
    found = Model.load(str(folder))
    example, asked = found.load_input_example(str(folder)), found.load_input_example_params(str(folder))
    assert example.to_dict("list") == {"prompt": ["a red circle"]}
    assert asked == {"steps": 1}
    validate_schema(example, found.signature.inputs)
    assert set(asked) <= {param.name for param in found.signature.params}
    drawn = mlflow.pyfunc.load_model(str(folder)).predict(example, params=asked)
    validate_schema(drawn, found.signature.outputs)
    assert picture(drawn["png"][0]).size == (64, 64)


def test_card_licence_lineage_and_metrics_travel_with_the_version(registered, repository, server):
    with track.stage("prepare", prepare=config.load(config.Prepare)) as prepared:
        pass
    answer = registered(evaluation(0.3, 0.5))
    folder, _ = draw.folder_of(answer["uri"], None)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "| student | 1 | 0.300 ± 0.020 |" in text
    assert evaluation(0.3, 0.5)["protocol_digest"] in text
    assert "| autoencoder | Apache-2.0 |" in text
    assert "sCM" in text
    assert "prepare.source.kind: `scenes`" in text
    assert "distill.recipe: `sprint`" in text  # by the profile: no run of distill is known here
    tags = server.get_model_version(NAME, "1").tags
    assert tags["licence"] == "Apache-2.0"
    assert tags["run_prepare"] == prepared.run_id
    assert tags["weights_digest"] == storage.digest(repository / "data/models/student" / SIZE)
    assert {"git_commit", "git_dirty", "data_digest", "run_parent"} <= set(tags)
    metrics = {m.key: m.value for m in server.get_logged_model(answer["model_id"]).metrics}
    assert metrics["overall/student_4_step"] == 0.5
    assert metrics["standard_error/task_don_t_ say_student_4_step"] == 0.02
    assert (folder.parents[1] / "evaluation" / f"{SIZE}.json").is_file()


def test_registration_leaves_the_student_as_it_was(registered, repository, sprint_folder):
    registered(evaluation(0.3, 0.5))
    student = repository / "data/models/student" / SIZE
    assert not (student / "README.md").exists()
    assert list(package.staging(repository, NAME).parent.iterdir()) == []


def test_lineage_passes_over_runs_of_other_params(repository, server):
    prepare = config.load(config.Prepare)
    with track.stage("prepare", prepare=prepare) as fits:
        pass
    with track.stage("prepare", prepare=prepare.model_copy(update={"seed": 5})) as other:
        pass
    sections = config.read(repository / "profiles/demo.yaml")
    assert lineage.run_ids(server, other.run_id, SIZE, sections, repository) == {"run_prepare": fits.run_id}


def test_the_digest_of_the_data_manifest_is_recorded(repository):
    assert lineage.digests(repository) == {"data_digest": "none"}
    manifest = repository / "data/raw/manifest.parquet"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("rows")
    assert lineage.digests(repository) == {"data_digest": hashlib.sha256(b"rows").hexdigest()}


def test_scores_without_their_protocol_are_refused(registered):
    scores = evaluation(0.3, 0.5)
    del scores["protocol_digest"]
    with pytest.raises(SystemExit):
        registered(scores)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["overall", "fid_scene_clip"], "scenes"),
        (["overall", "fid_corpus_clip"], "classes"),
        (["clip_score"], "none"),
    ],
)
def test_judge_is_told_from_the_scores(keys, kind):
    assert measured.judged_by({"1": {key: {"value": 0.1, "se": 0.1} for key in keys}}, {}) == kind
