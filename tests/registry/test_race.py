"""Two people at once, as real processes: exactly one moves the champion, the other learns who, and nothing is half
done; against the sqlite store, against a real server, and against the team's with PostgreSQL, all of two workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from sana_sprint.registry import audit, history, moves, promote, store
from tests.registry.conftest import ROOT, Model
from tests.registry.test_promote import aliases, promoted
from tests.stores import PASSWORD

ROUNDS = {"sqlite": 12, "http": 5}  # a server answers more slowly
WORKER = """
import json, os, signal, sys
from pathlib import Path
from sana_sprint.registry import history, moves, policy, promote, store

server, rules = store.client(sys.argv[1]), policy.load(Path("mlflow/promotion.yaml"))
append, carry_out = history.append, moves.carry_out

def together(*words):
    print("judged", flush=True)  # both have judged before either writes
    assert sys.stdin.readline() == "go\\n"
    return append(*words)

def dies(*words):
    os.kill(os.getpid(), signal.SIGKILL)

for line in sys.stdin:
    how, name, number = line.split()
    history.append = together if how == "together" else append
    moves.carry_out = dies if how == "die" else carry_out
    try:
        if number == "back":
            to = promote.rollback(server, name)[1]
        else:
            to = number if promote.move(server, promote.judge(server, name, rules, number)) else None
        print(json.dumps({"moved": to}), flush=True)
    except ValueError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
"""


class Person:
    """A process that promotes when it is told to."""

    def __init__(self, uri, user):
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "LOGNAME": user}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, uri], cwd=ROOT, env=environment, **pipes)

    def say(self, *words):
        self.process.stdin.write(f"{' '.join(words)}\n")
        self.process.stdin.flush()

    def hear(self):
        return self.process.stdout.readline().strip()

    def answer(self):
        return json.loads(self.hear())


@pytest.fixture(scope="module", params=["sqlite", "server", pytest.param("team", marks=pytest.mark.e2e)])
def uri(request, tmp_path_factory, empty_store):
    """The address of a sqlite store, then of real servers with their user in the environment."""
    if request.param == "sqlite":
        place = tmp_path_factory.mktemp("contested") / "mlflow.db"
        shutil.copy(empty_store, place)
        yield f"sqlite:///{place}"
    elif request.param == "team":
        team = request.getfixturevalue("team")
        with team.member("ada"):
            yield team.uri
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            yield request.getfixturevalue("team_server")


@pytest.fixture(scope="module")
def people(uri):
    """Three processes on one store."""
    started = [Person(uri, user) for user in ("bob", "carol", "dave")]
    yield started
    for person in started:
        person.process.kill()
        person.process.wait()
        person.process.stdin.close()
        person.process.stdout.close()


@pytest.fixture
def contested(uri, tmp_path, rules):
    """A model of four equal versions, the first of them champion."""
    (tmp_path / "versions").mkdir()
    made = Model(store.client(uri), f"contested-{time.time_ns()}", tmp_path / "versions")
    for _ in range(4):
        made.add()
    promoted(made, rules, "1")
    return made


def rounds(model):
    return ROUNDS[model.server.tracking_uri.partition(":")[0]]


def test_of_two_that_judged_the_same_champion_exactly_one_moves_it(contested, people):
    both, number_of = people[:2], rounds(contested)
    champion = "1"
    for _ in range(number_of):
        numbers = [number for number in ("1", "2", "3", "4") if number != champion][:2]
        for person, number in zip(both, numbers, strict=True):
            person.say("together", contested.name, number)
        assert [person.hear() for person in both] == ["judged", "judged"]
        for person in both:
            person.say("go")
        answers = [person.answer() for person in both]
        (won,) = [answer["moved"] for answer in answers if "moved" in answer]
        (refused,) = [answer["refused"] for answer in answers if "refused" in answer]
        assert f"it was version {champion} and is version {won}; nothing was changed here" in refused
        assert aliases(contested) == (won, champion)
        champion = won
    chain, faults = audit.audit(contested.server, contested.name)
    assert faults == []
    assert [entry.number for entry in chain.entries] == list(range(1, 2 * number_of + 2))
    assert sum(entry.valid for entry in chain.entries) == number_of + 1


def test_three_that_move_and_roll_back_as_they_like_leave_a_whole_history(contested, people):
    number_of = rounds(contested)
    for turn in range(number_of):
        for place, person in enumerate(people):
            person.say("freely", contested.name, str((turn + place) % 4 + 1) if (turn + place) % 4 else "back")
    answers = [person.answer() for _ in range(number_of) for person in people]
    moved = [answer for answer in answers if answer.get("moved")]
    chain, faults = audit.audit(contested.server, contested.name)
    assert faults == []
    assert sum(entry.valid for entry in chain.entries) == len(moved) + 1
    assert contested.alias() == chain.champion


def test_what_a_killed_process_left_is_finished_at_once_by_the_next(contested, people, rules, monkeypatch):
    bob = people[0]
    bob.say("die", contested.name, "2")
    assert bob.process.wait(60) == -signal.SIGKILL
    assert aliases(contested) == ("1", None)
    _, (fault,) = audit.audit(contested.server, contested.name)
    assert (fault.entry, fault.text[:24]) == (2, "was not carried out: the")
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: pytest.fail("a dead process is waited for"))
    monkeypatch.setattr(moves, "time", clock)
    assert promote.judge(contested.server, contested.name, rules, "3").before == "2"
    assert aliases(contested) == ("2", "1")
    assert audit.audit(contested.server, contested.name)[1] == []
    assert history.read(contested.server, contested.name).last.content["user"].startswith(("bob", "anna", "ada"))
