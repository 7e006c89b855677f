"""A registered student is judged by evaluate's own code: equal weights get equal scores, and `promote --reevaluate`
moves on once the champion is measured under the challenger's protocol."""

import json
import shutil

import pytest

from sana_sprint import config, storage
from sana_sprint.evaluation import again
from sana_sprint.registry import history, lineage, measured, register, track
from tests.evaluation.conftest import EVALUATE, SAMPLING
from tests.registry.conftest import NAME, SIZE, repository, server
from tests.test_cli import call, refused
from tests.test_cli_registry import parsed

__all__ = ["repository", "server"]


@pytest.fixture
def place(repository, folders):
    """A repository whose data, judge and profile are those that `outcome` was evaluated with."""
    (repository / "data/models").mkdir(parents=True)
    (repository / "data/raw").symlink_to(folders.raw)
    (repository / "data/models/judge").symlink_to(folders.judge)
    profile = repository / "profiles/demo.yaml"
    sections = config.read(profile) | {"evaluate": EVALUATE.model_dump(), "sampling": SAMPLING.model_dump()}
    profile.write_text(json.dumps(sections | {"trigflow": {"sigma_d": 0.5}}))
    with track.stage("distill", SIZE, distill=config.load(config.Distill)):
        pass  # the card tells of its params
    return repository


def student(place, folders, weights):
    """The student's folder in the repository, with another file to tell it by."""
    folder = place / "data/models/student" / SIZE
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders.student, folder)
    (folder / "weights.txt").write_text(weights)
    return folder


def registered(place, folders, result, weights):
    folder = student(place, folders, weights)
    scores = place / "scores.json"
    storage.write_json(scores, result)
    params = config.load(config.Register)
    with track.stage("register", SIZE, register=params) as run:
        return register.register(folder, scores, params, run)


def otherwise(result):
    """The same scores as if they had been taken under another protocol."""
    protocol = result["protocol"] | {"note": "another one"}
    return result | {"protocol": protocol, "protocol_digest": storage.digest_of(protocol)}


def test_the_same_weights_get_the_same_scores_under_the_same_digest(place, folders, outcome):
    folder = student(place, folders, "one")
    storage.write_json(folder / "sampling.json", {"times": SAMPLING.times})
    seen = []
    found = again.run(EVALUATE, SAMPLING, 0.5, folder, place, SIZE, seen.append)
    assert seen == [found["protocol_digest"]] == [outcome.result["protocol_digest"]]
    scores, before = (lineage.flat(one["scores"]["student"]) for one in (found, outcome.result))
    assert scores == pytest.approx(before, abs=1e-5)  # another number of threads rounds otherwise
    assert set(found["scores"]) == {"student"}
    assert set(found["latency"]["student"]) == {"1", "2", "3", "4"}


def test_promote_measures_the_champion_under_the_challengers_protocol(place, folders, outcome, server):
    policy = place / "mlflow/promotion.yaml"
    text = policy.read_text().replace('overall: {"1": 0.22, "4": 0.45}', 'overall: {"1": 0.0}')
    text = text.replace("latency_times: 4.0", "latency_times: null")  # the two are timed minutes apart
    policy.write_text(text.replace('beats_undistilled: {overall: ["1"]}', "beats_undistilled: {}"))
    old = otherwise(outcome.result)
    old["scores"] = json.loads(json.dumps(old["scores"]))
    old["scores"]["student"]["1"]["overall"]["value"] = 0.9  # of another protocol, so no measure here
    registered(place, folders, old, "old")
    call("promote")
    registered(place, folders, outcome.result, "new")
    assert "`--reevaluate` scores the champion" in refused("promote", code=3)
    told = parsed("promote", "--reevaluate")
    assert (told["promoted"], told["champion_before"]) == (True, "1")
    gates = {gate["name"]: gate for gate in told["gates"]}
    assert gates["protocol digest"]["bound"].endswith("the champion's, re-evaluated")
    tags = server.get_model_version(NAME, "1").tags
    assert tags["protocol_digest"] == old["protocol_digest"]  # what it was registered with stays
    mine = measured.under(tags, outcome.result["protocol_digest"])
    for steps, scores in outcome.result["scores"]["student"].items():
        assert mine.score("student", steps, "overall") == (scores["overall"]["value"], scores["overall"]["se"])
        assert mine.tasks[steps] == measured.own(server.get_model_version(NAME, "2").tags).tasks[steps]
    assert history.read(server, NAME).last.content["from"] == "1"


def test_another_protocol_than_the_challengers_is_refused_before_a_picture_is_drawn(place, folders, outcome, server):
    registered(place, folders, outcome.result, "old")
    call("promote", "--force", "--reason", "a first one")
    other = otherwise(outcome.result)
    registered(place, folders, other, "new")
    line = refused("promote", "--reevaluate")
    digest = outcome.result["protocol_digest"][:12]
    assert (
        f"the protocol of this working tree is {digest}, version 2 was scored under {other['protocol_digest'][:12]}"
        in line
    )
    assert "run `dvc repro register` here" in line
    assert not [key for key in server.get_model_version(NAME, "1").tags if key.startswith(measured.REEVALUATION)]
