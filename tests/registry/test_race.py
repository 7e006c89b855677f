"""Two people at once, as real processes: exactly one moves the champion, the other learns who, and nothing is half
done; against the sqlite store and against a real server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sana_sprint.registry import audit, history, promote, store
from tests.registry.conftest import ROOT, Model
from tests.registry.test_promote import aliases, promoted

ROUNDS = {"sqlite": 12, "http": 5}  # a server answers more slowly
WORKER = """
import json, os, signal, sys
from pathlib import Path
from sana_sprint.registry import history, moves, policy, promote, store

server, name, rules = store.client(sys.argv[1]), sys.argv[2], policy.load(Path(sys.argv[3]))
append, carry_out = history.append, moves.carry_out

def together(*words):
    print("judged", flush=True)  # both have judged before either writes
    assert sys.stdin.readline() == "go\\n"
    return append(*words)

def dies(*words):
    os.kill(os.getpid(), signal.SIGKILL)

for line in sys.stdin:
    how, number = line.split()
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

    def __init__(self, model, user):
        words = [sys.executable, "-c", WORKER, model.server.tracking_uri, model.name, "mlflow/promotion.yaml"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "USER": user}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, cwd=ROOT, env=environment, **pipes)

    def say(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self):
        return self.process.stdout.readline().strip()

    def answer(self):
        return json.loads(self.hear())


@pytest.fixture
def people():
    """Returns a function that starts processes on a model; they are gone after the test."""
    started = []

    def start(model, *users):
        started.extend(Person(model, user) for user in users)
        return started

    yield start
    for person in started:
        person.process.kill()
        person.process.wait()
        person.process.stdin.close()
        person.process.stdout.close()


@pytest.fixture(params=["sqlite", "server"])
def contested(request, tmp_path, empty_store, monkeypatch):
    """A model of four equal versions, the first of them champion, in either store."""
    if request.param == "sqlite":
        shutil.copy(empty_store, tmp_path / "mlflow.db")
        uri = f"sqlite:///{tmp_path}/mlflow.db"
    else:
        request.getfixturevalue("anna")
        uri = request.getfixturevalue("team_server")
    (tmp_path / "versions").mkdir()
    made = Model(store.client(uri), f"contested-{request.param}-{time.time_ns()}", tmp_path / "versions")
    for _ in range(4):
        made.add()
    promoted(made, request.getfixturevalue("rules"), "1")
    return made


def rounds(model):
    return ROUNDS[model.server.tracking_uri.partition(":")[0]]


def test_of_two_that_judged_the_same_champion_exactly_one_moves_it(contested, people):
    both, number_of = people(contested, "bob", "carol"), rounds(contested)
    champion = "1"
    for _ in range(number_of):
        numbers = [number for number in ("1", "2", "3", "4") if number != champion][:2]
        for person, number in zip(both, numbers, strict=True):
            person.say(f"together {number}")
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
    three, number_of = people(contested, "bob", "carol", "dave"), rounds(contested)
    for turn in range(number_of):
        for place, person in enumerate(three):
            person.say("freely back" if (turn + place) % 4 == 0 else f"freely {(turn + place) % 4 + 1}")
    answers = [person.answer() for _ in range(number_of) for person in three]
    moved = [answer for answer in answers if answer.get("moved")]
    chain, faults = audit.audit(contested.server, contested.name)
    assert faults == []
    assert sum(entry.valid for entry in chain.entries) == len(moved) + 1
    assert contested.alias() == chain.champion


def test_what_a_killed_process_left_is_finished_at_once_by_the_next(contested, people, rules):
    (bob,) = people(contested, "bob")
    bob.say("die 2")
    assert bob.process.wait(60) == -signal.SIGKILL
    assert aliases(contested) == ("1", None)
    _, (fault,) = audit.audit(contested.server, contested.name)
    assert (fault.entry, fault.text[:24]) == (2, "was not carried out: the")
    started = time.monotonic()
    assert promote.judge(contested.server, contested.name, rules, "3").before == "2"
    assert time.monotonic() - started < 8  # the process is known to be dead, so it is not waited for
    assert aliases(contested) == ("2", "1")
    assert audit.audit(contested.server, contested.name)[1] == []
    assert history.read(contested.server, contested.name).last.content["user"].startswith(("bob", "anna"))
