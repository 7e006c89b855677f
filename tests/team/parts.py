"""The team's server for real: PostgreSQL from Debian's packages, an S3 server on a folder, MLflow by mlflow/serve.sh.

Each part can be killed and started again on its own port with what it had.
"""

from __future__ import annotations

import os
import pwd
import re
import runpy
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.team import runbook

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "sana-sprint"
READERS = ("cleo",)  # their key to the bucket reads alone
READY_S = 120
PASSWORD_S = 5  # for which a changed password is still good
STRIPPED = ("MLFLOW_", "AWS_", "PG", "PYTEST_")  # MLflow checks itself harder where it sees pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def plain_environment() -> dict[str, str]:
    """What a shell in the activated environment has, without any setting of MLflow, S3 or PostgreSQL."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(STRIPPED)}
    path = [str(Path(sys.executable).parent), str(postgres_programs()), kept["PATH"]]
    return kept | {"PATH": os.pathsep.join(path)}


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, the newest that Debian's packages have put there."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    assert found, "PostgreSQL is not installed: apt install postgresql"
    return found[-1].parent


@dataclass
class Part:
    """A server in a process group of its own."""

    words: list[str]
    port: int
    log: Path
    environment: dict[str, str]
    user: str | None = None
    health: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Part:
        """Starts it and waits until it answers."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.words,
                env=self.environment,
                stdout=output,
                stderr=output,
                cwd="/",
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_S
        while not self.answers():
            assert self.process.poll() is None, f"{self.words[0]} ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{self.words[0]} does not answer:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)
        return self

    def answers(self) -> bool:
        try:
            if self.health is None:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            else:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.health}", timeout=2):
                    pass
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to all of it: what a crash leaves."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @contextmanager
    def down(self, seconds: float):
        """Kills it; the block runs meanwhile, and after `seconds` at least it is started again."""
        self.kill()
        back_at = time.monotonic() + seconds
        try:
            yield
        finally:
            time.sleep(max(0.0, back_at - time.monotonic()))
            self.start()


@dataclass
class Postgres(Part):
    """A cluster whose superuser is postgres; `password` is everybody's."""

    folder: Path = Path()
    password: str = ""

    @classmethod
    def make(cls, folder: Path, password: str) -> Postgres:
        """A new cluster. PostgreSQL refuses to run as root, so it runs as the user that Debian's package makes."""
        programs, user = postgres_programs(), "postgres" if os.geteuid() == 0 else None
        place = Path(tempfile.mkdtemp(prefix="sana-sprint-postgres-"))  # pytest's own folders are closed to others
        (place / "password").write_text(password)
        if user:
            entry = pwd.getpwnam(user)
            for path in (place, place / "password"):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        data, port = place / "data", free_port()
        start = ["--auth=scram-sha-256", "--username=postgres", f"--pwfile={place / 'password'}", "--no-sync"]
        subprocess.run(
            [programs / "initdb", "-D", data, *start, "--encoding=UTF8", "--locale=C.UTF-8"],
            env={"PATH": os.environ["PATH"]},
            user=user,
            group=user,
            extra_groups=[] if user else None,
            cwd="/",
            check=True,
            capture_output=True,
        )
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "shared_buffers=64MB"]
        words = [str(programs / "postgres"), "-D", str(data), "-p", str(port)]
        words += [word for setting in settings for word in ("-c", setting)]
        log = folder / "postgres.log"
        return cls(words, port, log, {"PATH": os.environ["PATH"]}, user, folder=place, password=password)

    def answers(self) -> bool:
        return "ready to accept connections" in self.log.read_text()[self.seen :] and super().answers()

    def start(self) -> Part:
        self.seen = len(self.log.read_text()) if self.log.exists() else 0
        return super().start()

    def uri(self, database: str, user: str = "mlflow") -> str:
        """The address of a database, without a password, which is PGPASSWORD."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def rows(self, query: str, database: str = "mlflow", parameters=()):
        """The rows that a query gives, by the superuser."""
        import psycopg

        with psycopg.connect(self.uri(database, "postgres"), password=self.password, autocommit=True) as one:
            answer = one.execute(query, parameters)
            return answer.fetchall() if answer.description else []

    def prepare(self) -> None:
        """Makes the user mlflow and the two databases by the runbook's lines, as the superuser. Without a terminal
        createuser takes the password from stdin, twice."""
        superuser = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres", "PGPASSWORD": self.password}
        for line in runbook.commands("Start")[0].splitlines():
            subprocess.run(
                ["bash", "-euc", line],
                env=plain_environment() | superuser,
                input=f"{self.password}\n{self.password}\n",
                text=True,
                cwd="/",
                check=True,
                capture_output=True,
                start_new_session=True,
            )

    def make_database(self, name: str) -> str:
        """Makes an empty database of the user mlflow and returns its address."""
        self.rows(f"create database {name} owner mlflow", "postgres")
        return self.uri(name)


@dataclass
class Team:
    """The parts, and what their users know."""

    postgres: Postgres
    s3: Part
    server: Part
    settings: dict[str, str]
    folder: Path
    reader_key: dict[str, str]
    passwords: dict[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def buckets(self) -> Path:
        """The folder in which the S3 server keeps its objects."""
        return self.folder / "buckets"

    def client(self, user: str = "ada") -> dict[str, str]:
        """The variables that a member of the team sets."""
        kept = ("MLFLOW_S3_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        known = self.settings | (self.reader_key if user in READERS else {})
        login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": self.passwords[user]}
        return {"MLFLOW_TRACKING_URI": self.uri} | {key: known[key] for key in kept} | login

    def secrets(self) -> set[str]:
        """Every password and key that must be seen nowhere."""
        named = {self.settings[name] for name in variables("secrets.env.example")}
        return named | set(self.passwords.values()) | set(self.reader_key.values())

    @contextmanager
    def member(self, user: str):
        """Makes this process one of that user for a while; MLflow reads the variables at each request, boto3 once."""
        with mock.patch.dict(os.environ, self.client(user)):
            forget_keys()
            try:
                yield
            finally:
                forget_keys()

    def run(self, *words: str, code: int = 0, user: str = "ada", cwd: Path = ROOT, **variables: str) -> str:
        """What a command prints to a member of the team, on the server's machine. The exit code must be `code`."""
        done = subprocess.run(
            words,
            cwd=cwd,
            env=plain_environment() | self.settings | self.client(user) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout


def forget_keys() -> None:
    """Lets boto3, and the clients of it that MLflow keeps, read the keys anew."""
    import boto3
    from mlflow.store.artifact import s3_artifact_repo

    boto3.DEFAULT_SESSION = None
    s3_artifact_repo._cached_get_s3_client.cache_clear()


def variables(file: str) -> dict[str, str]:
    """The variables of an example file of mlflow/."""
    return dict(re.findall(r"^([A-Z]\w*)=(.*)$", (ROOT / "mlflow" / file).read_text(), re.MULTILINE))


def settings(postgres: Postgres, s3_port: int, port: int) -> dict[str, str]:
    """The example files' variables with this machine's addresses and fresh secrets."""
    secret = {name: secrets.token_urlsafe(24) for name in variables("secrets.env.example")}
    chosen = variables("server.env.example") | secret
    return chosen | {
        "PGPASSWORD": postgres.password,
        "MLFLOW_BACKEND_STORE_URI": postgres.uri("mlflow"),
        "MLFLOW_AUTH_DATABASE_URI": postgres.uri("mlflow_auth"),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"s3://{BUCKET}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "MLFLOW_WORKERS": "2",
        "MLFLOW_AUTH_CACHE_SECONDS": str(PASSWORD_S),
    }


def s3_server(folder: Path, environment: dict[str, str], port: int) -> Part:
    (folder / "buckets" / BUCKET).mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(Path(__file__).with_name("s3.py")), str(folder / "buckets"), str(port)]
    return Part(words, port, folder / "s3.log", environment)


def mlflow_server(folder: Path, environment: dict[str, str]) -> Part:
    words = ["bash", str(ROOT / "mlflow/serve.sh")]
    return Part(words, int(environment["MLFLOW_PORT"]), folder / "mlflow.log", environment, health="/health")


def add_user(team: Team, name: str, role: str) -> None:
    """What mlflow/add_user.py does, without a process of its own."""
    from mlflow.server.auth.client import AuthServiceClient

    script = runpy.run_path(str(ROOT / "mlflow/add_user.py"))
    with team.member("admin"), mock.patch.dict(os.environ, {"NEW_PASSWORD": team.passwords[name]}):
        script["set_role"](AuthServiceClient(team.uri), name, role)


@contextmanager
def team(folder: Path):
    """A running Team with a database each for runs and users, an administrator `admin`, two members that may write,
    `ada` and `ben`, and one that may look, `cleo`."""
    postgres = Postgres.make(folder, secrets.token_urlsafe(24))
    s3_port, port = free_port(), free_port()
    chosen = settings(postgres, s3_port, port)
    environment = plain_environment() | chosen
    reader = {name: secrets.token_urlsafe(24) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    keys = {"READER_ACCESS_KEY_ID": reader["AWS_ACCESS_KEY_ID"], "READER_ACTIONS": ",".join(runbook.reader_actions())}
    s3, server = s3_server(folder, environment | keys, s3_port), mlflow_server(folder, environment)
    one = Team(postgres, s3, server, chosen, folder, reader)
    one.passwords["admin"] = chosen["MLFLOW_AUTH_ADMIN_PASSWORD"]
    try:
        postgres.start()
        postgres.prepare()
        one.s3.start()
        one.server.start()
        for name, role in (("ada", "writer"), ("ben", "writer"), ("cleo", "reader")):
            one.passwords[name] = secrets.token_urlsafe(24)
            add_user(one, name, role)
        yield one
    finally:
        for part in (one.server, one.s3, one.postgres):
            part.kill()
        shutil.rmtree(postgres.folder, ignore_errors=True)
