"""The follower: every move of the alias reaches a real receiver, signed, also when that is away for a while; a command
gets it on its stdin; and nothing is told twice across a restart."""

import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow.tracking import MlflowClient

from sana_sprint.registry import follow, history, promote, store, webhook
from tests.registry.conftest import NAME, ROOT, Model, evaluation
from tests.registry.test_promote import promoted
from tests.test_cli import call, refused

SECRET = "a secret of both"


class Receiver(ThreadingHTTPServer):
    """A receiver that keeps what it is sent and answers what it is told to."""

    def __init__(self):
        self.got, self.answers = [], []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/champion"

    def events(self):
        return [json.loads(body) for _, body in self.got]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def champion(model, rules):
    """A model with a champion, and two versions that may follow it."""
    for score in (0.40, 0.50, 0.60):
        model.add(evaluation(score, 0.70))
    promoted(model, rules, "1")
    return model


def begun(model, state=None, tell_first=False):
    return follow.Follower.begin(model.server, model.name, "champion", state, tell_first)


def looked(follower, deliver, tries=1):
    return list(follow.follow(follower, deliver, 0.01, tries, once=True))


def independent(headers, body, secret=SECRET):
    """The signature as standardwebhooks.com has it, computed here."""
    text = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    return "v1," + base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha256).digest()).decode()


def test_a_move_is_posted_once_and_the_signature_is_the_conventions(champion, rules, receiver):
    follower, deliver = begun(champion), follow.to_url(receiver.url, SECRET)
    assert looked(follower, deliver) == []
    promoted(champion, rules, "2")
    (told,) = looked(follower, deliver)
    assert looked(follower, deliver) == []
    ((headers, body),) = receiver.got
    assert headers["webhook-signature"] == independent(headers, body)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert headers["webhook-id"] == told["id"]
    event = json.loads(body)
    assert (event["event"], event["name"], event["from"], event["to"]) == ("champion.moved", champion.name, "1", "2")
    entry = history.read(champion.server, champion.name).last
    assert (event["entry"]["entry"], event["entry"]["digest"], event["entry"]["action"]) == (2, entry.digest, "promote")
    assert event["weights_digest"] == champion.server.get_model_version(champion.name, "2").tags["weights_digest"]
    assert webhook.verified(SECRET, headers, body)


def test_what_a_receiver_must_refuse_is_not_verified(monkeypatch):
    body = b'{"to": "2"}'
    headers = webhook.headers(SECRET, "id-1", body)
    assert webhook.verified(SECRET, headers, body)
    assert webhook.verified(SECRET, headers | {"webhook-signature": f"v1,x {headers['webhook-signature']}"}, body)
    assert not webhook.verified("another secret", headers, body)
    assert not webhook.verified(SECRET, headers, body.replace(b"2", b"3"))
    assert not webhook.verified(SECRET, headers | {"webhook-id": "id-2"}, body)
    later = str(int(headers["webhook-timestamp"]) + 301)
    assert not webhook.verified(SECRET, headers | {"webhook-timestamp": later}, body)
    assert not webhook.verified(SECRET, {}, body)
    now = int(headers["webhook-timestamp"])
    monkeypatch.setattr(webhook.time, "time", lambda: now + 301)
    assert not webhook.verified(SECRET, headers, body)


def test_the_signature_is_that_of_the_conventions_published_example():
    """From the specification's libraries: secret, id, timestamp, body and signature."""
    signature = webhook.signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_servers_own_webhook_tells_of_a_promotion_and_is_verified_alike(team_server, anna, receiver, rules, tmp_path):
    made = store.client(team_server)
    model = Model(made, f"hooked-{tmp_path.name}", tmp_path)
    model.add()
    hook = made.create_webhook(model.name, receiver.url, ["model_version_alias.created"], secret=SECRET)
    time.sleep(1.5)  # the server's list of webhooks is a second old at most
    promoted(model, rules)
    deadline = time.monotonic() + 30
    while not receiver.got and time.monotonic() < deadline:
        time.sleep(0.2)
    made.delete_webhook(hook.webhook_id)
    event = next(event for event in receiver.events() if event["data"]["alias"] == "champion")
    assert (event["action"], event["data"]["name"], event["data"]["version"]) == ("created", model.name, "1")
    assert all(webhook.verified(SECRET, headers, body) for headers, body in receiver.got)
    assert not any(webhook.verified("another", headers, body) for headers, body in receiver.got)


def test_a_receiver_that_is_away_gets_the_event_later_under_the_same_id(champion, rules, receiver):
    follower, deliver = begun(champion), follow.to_url(receiver.url, SECRET)
    promoted(champion, rules, "2")
    receiver.answers = [500, 302, 503]
    (told,) = looked(follower, deliver, tries=3)
    assert (told["delivered"], told["tries"], told["fault"]) == (False, 3, "the receiver answered 503")
    receiver.answers = [500]
    (told,) = looked(follower, deliver, tries=3)
    assert (told["delivered"], told["tries"]) == (True, 2)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert looked(follower, deliver) == []
    receiver.shutdown()
    receiver.server_close()
    promoted(champion, rules, "3")
    (told,) = looked(follower, deliver)
    assert not told["delivered"]
    assert "refused" in told["fault"]


def test_moves_between_two_looks_are_one_event_that_names_them(champion, rules, receiver):
    follower, deliver = begun(champion), follow.to_url(receiver.url, SECRET)
    promoted(champion, rules, "2")
    promoted(champion, rules, "3")
    looked(follower, deliver)
    (event,) = receiver.events()
    assert (event["from"], event["to"], event["entries"]) == ("1", "3", [2, 3])


def test_a_move_by_other_hands_has_no_entry_and_one_to_nothing_is_told_too(champion, receiver):
    follower, deliver = begun(champion), follow.to_url(receiver.url, SECRET)
    champion.server.set_registered_model_alias(champion.name, "champion", "3")
    looked(follower, deliver)
    champion.server.delete_registered_model_alias(champion.name, "champion")
    looked(follower, deliver)
    assert [(event["to"], event["entry"]) for event in receiver.events()] == [("3", None), (None, None)]


def test_a_state_goes_on_where_it_was_and_belongs_to_one_alias(champion, rules, receiver, tmp_path):
    state, deliver = tmp_path / "state/champion.json", follow.to_url(receiver.url, SECRET)
    begun(champion, state)
    promoted(champion, rules, "2")
    looked(begun(champion, state), deliver)
    looked(begun(champion, state), deliver)
    assert [event["to"] for event in receiver.events()] == ["2"]
    with pytest.raises(ValueError, match=r"the state of test_a_state_goes_on.*@champion; give each its own"):
        follow.Follower.begin(champion.server, "another", "champion", state, tell_first=False)
    looked(begun(champion, tell_first=True), deliver)
    assert [(event["from"], event["to"]) for event in receiver.events()] == [("1", "2"), (None, "2")]


def test_a_store_that_is_away_is_waited_for(champion, rules, receiver, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    follower, deliver = begun(champion), follow.to_url(receiver.url, SECRET)
    follower.server = MlflowClient("http://127.0.0.1:9")

    def returns():
        promoted(champion, rules, "2")
        follower.server = champion.server

    threading.Timer(1.0, returns).start()
    told = next(follow.follow(follower, deliver, 0.2, 1, once=False))
    assert (told["to"], told["delivered"]) == ("2", True)
    assert "the store does not answer" in capsys.readouterr().err


def test_a_command_gets_the_event_and_not_the_secret(champion, rules, tmp_path, monkeypatch):
    monkeypatch.setenv("SANA_SPRINT_WEBHOOK_SECRET", SECRET)
    script = tmp_path / "hook.py"
    script.write_text(
        "import json, os, sys\n"
        "event = json.load(sys.stdin)\n"
        "assert event == json.loads(os.environ['SANA_SPRINT_EVENT'])\n"
        "assert 'SANA_SPRINT_WEBHOOK_SECRET' not in os.environ\n"
        f"open({str(tmp_path / 'told')!r}, 'a').write(event['to'] + sys.argv[1])\n"
        "sys.exit(int(event['to'] == '3'))\n"
    )
    follower, deliver = (
        begun(champion),
        follow.to_command(f"{sys.executable} -S '{script}' '; no shell'".replace(" dir", "\\ dir")),
    )
    promoted(champion, rules, "2")
    assert looked(follower, deliver)[0]["delivered"]
    promoted(champion, rules, "3")
    (told,) = looked(follower, deliver)
    assert not told["delivered"]
    assert told["fault"].endswith("ended with 1")
    assert (tmp_path / "told").read_text() == "2; no shell3; no shell"
    assert "No such file" in looked(follower, follow.to_command("/nowhere/hook"))[0]["fault"]
    with pytest.raises(ValueError, match="--command is empty"):
        follow.to_command(" ")


def test_the_console_follows_until_it_is_stopped(repository, server, receiver, rules, tmp_path):
    (tmp_path / "versions").mkdir()
    model = Model(server, NAME, tmp_path / "versions")
    for _ in range(2):
        model.add()
    promoted(model, rules, "1")
    words = ["follow", NAME, "--url", receiver.url, "--every", "0.2", "--json", "--tell-first"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "SANA_SPRINT_WEBHOOK_SECRET": SECRET}
    process = subprocess.Popen(
        [sys.executable, "-m", "sana_sprint.cli", *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert json.loads(process.stdout.readline())["to"] == "1"
        promoted(model, rules, "2")
        event = json.loads(process.stdout.readline())
        assert (event["to"], event["delivered"]) == ("2", True)
        promote.rollback(server, NAME)
        assert json.loads(process.stdout.readline())["to"] == "1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()
    assert [event["to"] for event in receiver.events()] == ["1", "2", "1"]
    assert all(webhook.verified(SECRET, headers, body) for headers, body in receiver.got)


def test_the_console_says_what_it_needs(repository, server, receiver, monkeypatch):
    server.create_registered_model(NAME)
    monkeypatch.delenv("SANA_SPRINT_WEBHOOK_SECRET", raising=False)
    assert "give --url or --command" in refused("follow", NAME)
    assert "SANA_SPRINT_WEBHOOK_SECRET is not set" in refused("follow", NAME, "--url", receiver.url)
    assert "nobody: no such registered model" in refused("follow", "nobody", "--command", "true", "--once")
    told = f"error: no version of {NAME} has the alias 'champion' yet; there are: none"
    assert refused("follow", NAME, "--command", "true", "--once") == told


def test_one_look_ends_with_1_when_an_event_is_not_taken_and_with_0_when_it_is(
    repository, server, receiver, rules, tmp_path, monkeypatch
):
    monkeypatch.setenv("SANA_SPRINT_WEBHOOK_SECRET", SECRET)
    (tmp_path / "versions").mkdir()
    model = Model(server, NAME, tmp_path / "versions")
    model.add()
    promoted(model, rules)
    words = ["follow", NAME, "--url", receiver.url, "--once", "--tries", "1", "--tell-first"]
    receiver.answers = [500]
    assert refused(*words) == f"error: {NAME}: the event was not taken after 1 tries: the receiver answered 500"
    assert call(*words).strip().endswith(f"{NAME}@champion none -> 1: told")


def test_an_alias_that_is_not_there_is_told_once_and_followed(champion, capsys):
    follower = follow.Follower.begin(champion.server, champion.name, "champoin", None, tell_first=False)
    threading.Timer(1.0, lambda: champion.server.set_registered_model_alias(champion.name, "champoin", "2")).start()
    told = next(follow.follow(follower, follow.to_command("true"), 0.1, 1, once=False))
    assert (told["event"], told["to"]) == ("champoin.moved", "2")
    line = f"warning: no version of {champion.name} has the alias 'champoin' yet; there are: challenger, champion"
    assert capsys.readouterr().err.splitlines() == [line]


def test_an_alias_that_is_set_between_look_and_warning_is_no_fault(champion):
    follower = follow.Follower.begin(champion.server, champion.name, "champoin", None, tell_first=False)
    assert follower.look() is None
    champion.server.set_registered_model_alias(champion.name, "champoin", "2")
    assert follower.absent() == ""
    assert follower.look()["to"] == "2"
