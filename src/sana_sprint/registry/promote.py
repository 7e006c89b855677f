"""Promotion: the alias `champion` moves only when the gates of mlflow/promotion.yaml hold; rollback puts it
back.

Everything that is decided on (scores, standard errors, protocol digest) stands in the tags of the model
versions, the history in tags of the registered model, so that any machine that reaches the registry can
promote.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from sana_sprint import config
from sana_sprint.registry import lineage
from sana_sprint.registry.register import CHALLENGER

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
EVENT = "history."  # prefix of the registered model's tags that hold the history, one event each
STEPS = Literal["1", "2", "3", "4"]


class Floors(config.Section):
    """Gates that need no champion: the score read, its least values, and where it must beat the
    undistilled.
    """

    score: Literal["overall", "clip_score"]
    floors: dict[STEPS, float]
    beats_undistilled: list[STEPS]


class AgainstChampion(config.Section):
    """Gates against the champion: `margin_se` standard errors of the difference below it are allowed."""

    steps: list[STEPS] = Field(min_length=1)
    margin_se: config.Weight


class Policy(config.Section):
    """mlflow/promotion.yaml."""

    judges: dict[Literal["scenes", "classes", "none"], Floors]
    champion: AgainstChampion


@dataclass(frozen=True)
class Gate:
    """One condition: what is asked, the value found, the bound it is held to, and whether it holds."""

    name: str
    value: str
    bound: str
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a promotion: `champion` is the version that carries the alias afterwards, if any
    does.
    """

    name: str
    version: str
    before: str | None
    gates: list[Gate]

    @property
    def holds(self) -> bool:
        """Whether every gate holds."""
        return all(gate.holds for gate in self.gates)

    @property
    def reasons(self) -> str:
        """The gates that do not hold, in words."""
        return "; ".join(f"{g.name}: {g.value}, asked {g.bound}" for g in self.gates if not g.holds)


def policy(path: Path) -> Policy:
    """Returns the policy of a file. Raises ValueError that names file and key."""
    try:
        found: Policy = Policy.model_validate(config.read(path))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path}: {faults}") from None
    return found


def version_of(server: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Returns the version that an alias points to, or None when the model or the alias is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return server.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def find(server: MlflowClient, name: str, number: str | None) -> ModelVersion:
    """Returns a version by number, else the challenger. Raises ValueError naming what is missing."""
    from mlflow.exceptions import MlflowException

    if number is None:
        found = version_of(server, name, CHALLENGER)
        if found is None:
            raise ValueError(f"{name}: no version has the alias '{CHALLENGER}'; run `dvc repro register` first")
        return found
    try:
        return server.get_model_version(name, number)
    except MlflowException:
        raise ValueError(f"{name}: there is no version {number}; see `sana-sprint history`") from None


def _score(version: ModelVersion, who: str, steps: str, key: str) -> tuple[float, float] | None:
    """Returns value and standard error of a score recorded with a version, or None."""
    found = json.loads(version.tags.get("scores", "{}")).get(who, {}).get(steps, {}).get(key)
    return (float(found[0]), float(found[1])) if found else None


def _steps(number: str) -> str:
    return f"{number} step{'' if number == '1' else 's'}"


def _floor_gates(version: ModelVersion, rules: Floors) -> list[Gate]:
    gates = []
    for steps, floor in rules.floors.items():
        found = _score(version, "student", steps, rules.score)
        told = "not scored" if found is None else f"{found[0]:.3f} ± {found[1]:.3f}"
        holds = found is not None and found[0] >= floor
        gates.append(Gate(f"{rules.score} at {_steps(steps)}", told, f">= {floor:.3f}", holds))
    for steps in rules.beats_undistilled:
        mine, other = (_score(version, who, steps, rules.score) for who in ("student", "undistilled"))
        told = "not scored" if mine is None else f"{mine[0]:.3f} ± {mine[1]:.3f}"
        bound = "a score of the undistilled student" if other is None else f"> {other[0]:.3f}, undistilled"
        holds = mine is not None and other is not None and mine[0] > other[0]
        gates.append(Gate(f"{rules.score} at {_steps(steps)}", told, bound, holds))
    return gates


def _champion_gates(version: ModelVersion, champion: ModelVersion, key: str, rules: AgainstChampion) -> list[Gate]:
    digests = [one.tags.get("protocol_digest", "none") for one in (version, champion)]
    same = digests[0] == digests[1]
    gates = [Gate("protocol digest", digests[0][:12], f"{digests[1][:12]}, the champion's", same)]
    for steps in rules.steps if same else []:
        mine, its = (_score(one, "student", steps, key) for one in (version, champion))
        if mine is None or its is None:
            gates.append(Gate(f"{key} at {_steps(steps)}", "not scored", "a score of both", holds=False))
            continue
        bound = its[0] - rules.margin_se * math.hypot(mine[1], its[1])
        told = f">= {bound:.3f}, the champion's {its[0]:.3f} less {rules.margin_se:g} se"
        gates.append(Gate(f"{key} at {_steps(steps)}", f"{mine[0]:.3f} ± {mine[1]:.3f}", told, mine[0] >= bound))
    return gates


def gates(version: ModelVersion, champion: ModelVersion | None, rules: Policy) -> list[Gate]:
    """Returns every gate of the policy for a version. The floors hold for each champion, not for the first
    alone, so that margins cannot add up to a slow decline.
    """
    judged = version.tags.get("judged_by", "")
    floors = {str(kind): entry for kind, entry in rules.judges.items()}.get(judged)
    if floors is None:
        raise ValueError(f"version {version.version} was judged by '{judged}', which mlflow/promotion.yaml lacks")
    against = _champion_gates(version, champion, floors.score, rules.champion) if champion else []
    return _floor_gates(version, floors) + against


def promote(server: MlflowClient, name: str, rules: Policy, number: str | None = None) -> Verdict:
    """Returns the verdict on a version (the challenger when `number` is None), and moves the alias `champion`
    to it if every gate holds.
    """
    version, champion = find(server, name, number), version_of(server, name, CHAMPION)
    before = str(champion.version) if champion else None
    verdict = Verdict(name, str(version.version), before, gates(version, champion, rules))
    if verdict.holds and verdict.before != verdict.version:
        _move(server, name, "promote", verdict.version, before)
    return verdict


def _move(server: MlflowClient, name: str, action: str, version: str, before: str | None) -> None:
    """Moves the alias, then appends the event: a process that dies between the two leaves a gap that the next
    event closes, since each event names the champion it replaced.
    """
    server.set_registered_model_alias(name, CHAMPION, version)
    number = len(history(server, name)) + 1
    at = datetime.now(UTC).isoformat(timespec="seconds")
    event = {"at": at, "action": action, "version": version, "before": before, "user": lineage.user()}
    server.set_registered_model_tag(name, f"{EVENT}{number:06d}", json.dumps(event))


def history(server: MlflowClient, name: str) -> list[dict[str, Any]]:
    """Returns the events of a model, oldest first: at (UTC), action, version, before, user."""
    from mlflow.exceptions import MlflowException

    try:
        tags = server.get_registered_model(name).tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ValueError(f"{name}: no such registered model; run `dvc repro register` first") from None
        raise
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(EVENT)]


def champions(events: list[dict[str, Any]]) -> list[str]:
    """Returns the champions that a rollback can walk down, the present one last."""
    stack: list[str] = []
    for event in events:
        before = event["before"]
        if before is not None and (not stack or stack[-1] != before):
            stack.append(before)  # the alias was moved by other hands since the last event
        if event["action"] == "promote":
            stack.append(event["version"])
        else:
            while stack and stack[-1] != event["version"]:
                stack.pop()
    return stack


def rollback(server: MlflowClient, name: str) -> tuple[str, str]:
    """Returns (the champion that was, the one put back) and moves the alias. Raises ValueError when there is
    none before it.
    """
    present = version_of(server, name, CHAMPION)
    if present is None:
        raise ValueError(f"{name}: no version has the alias '{CHAMPION}', so there is nothing to roll back")
    now = str(present.version)
    stack = champions(history(server, name))
    if not stack or stack[-1] != now:
        stack.append(now)
    there = {str(version.version) for version in server.search_model_versions(f"name = '{name}'")}
    earlier = [version for version in stack[:-1] if version in there and version != now]
    if not earlier:
        raise ValueError(f"{name}: version {now} is the first champion, so there is none to put back")
    _move(server, name, "rollback", earlier[-1], now)
    return now, earlier[-1]
