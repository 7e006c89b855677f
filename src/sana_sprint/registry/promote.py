"""Promotion: the alias `champion` moves only when the gates of mlflow/promotion.yaml hold, or by force with a reason;
rollback puts it back. `previous` is the version that the next rollback would put back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sana_sprint.registry import gates, moves, versions
from sana_sprint.registry import history as histories
from sana_sprint.registry.versions import CHAMPION

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from sana_sprint.registry.gates import Gate
    from sana_sprint.registry.history import Chain, Entry
    from sana_sprint.registry.policy import Policy

HELD = "every gate of the policy holds"


@dataclass(frozen=True)
class Verdict:
    """What the gates say of a version, and the history that they were held against: `before` is the champion there, and
    `champion_fault` says why its files cannot be used, where they cannot."""

    name: str
    version: str
    before: str | None
    gates: list[Gate]
    weights: dict[str, str]
    chain: Chain
    champion_fault: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every gate holds."""
        return all(gate.holds for gate in self.gates)

    @property
    def reasons(self) -> str:
        """The gates that do not hold, in words."""
        return "; ".join(gate.reason for gate in self.gates if not gate.holds)

    def public(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        told = {"name": self.name, "version": self.version, "champion_before": self.before, "holds": self.holds}
        told |= {"champion_fault": self.champion_fault}
        return told | {"gates": [gate.public() for gate in self.gates]}


def judge(server: MlflowClient, name: str, rules: Policy, number: str | None = None, look: bool = False) -> Verdict:
    """Returns the verdict on a version, the challenger when `number` is None. A move that somebody left in the middle
    is finished first unless this is a `look` alone."""
    version = versions.find(server, name, number)
    chain = histories.read(server, name) if look else moves.settle(server, name)
    before = chain.aliases.get(CHAMPION)
    champion = versions.find(server, name, before) if before else None
    found = gates.gates(version, champion, rules, versions.fault(server, version))
    gone = versions.fault(server, champion) if champion else None
    return Verdict(name, str(version.version), before, found, moves.weights(version, champion), chain, gone)


def move(server: MlflowClient, verdict: Verdict, why: str = HELD, force: bool = False) -> Entry | None:
    """Returns the entry of the move that makes a version the champion, None when it is so already. Raises ValueError
    when gates do not hold and it is not by `force`, and when somebody moved the champion since the verdict."""
    if verdict.before == verdict.version:
        return None
    if not verdict.holds and not force:
        raise ValueError(f"{verdict.name} version {verdict.version} is not promoted: {verdict.reasons}")
    return moves.record(
        server,
        verdict.chain,
        "promote",
        verdict.before,
        verdict.version,
        why,
        previous=verdict.before,
        weights=verdict.weights,
        forced=not verdict.holds,
        gates=[gate.public() for gate in verdict.gates],
    )


def champions(events: list[dict[str, Any]]) -> list[str]:
    """Returns the champions that a rollback can walk down, the present one last."""
    stack: list[str] = []
    for event in events:
        before, to = event["from"], event["to"]
        if before is not None and (not stack or stack[-1] != before):
            stack.append(before)  # the alias was moved by other hands since the last event
        if event["action"] == "rollback" or (event["action"] == "found" and to in stack):
            while stack and stack[-1] != to:
                stack.pop()
        elif to is None:
            stack = []  # the alias was taken off: a new line of champions begins
        else:
            stack.append(to)
    return stack


def rollback(
    server: MlflowClient, name: str, steps: int = 1, to: str | None = None, why: str = "not told"
) -> tuple[str, str, Entry]:
    """Returns (the champion that was, the one put back, the entry) after a move of `steps` champions back, or to the
    champion `to`. Raises ValueError when there is none, or when its files are gone."""
    chain = moves.settle(server, name)
    now = chain.aliases.get(CHAMPION)
    if now is None:
        raise ValueError(f"{name}: no version has the alias '{CHAMPION}', so there is nothing to roll back")
    there = {str(version.version): version for version in versions.every(server, name)}
    earlier = _earlier(chain, now, set(there))
    place = _place(name, now, earlier, steps, to)
    target = there[earlier[place]]
    gone = versions.fault(server, target)
    if gone is not None:
        raise ValueError(
            f"{name}: version {target.version} cannot be put back, its files are gone ({gone}); "
            f"the champion stays version {now}; `rollback --to` names another: {', '.join(earlier)}"
        )
    previous = earlier[place - 1] if place else None
    weights = moves.weights(target, there.get(now))
    entry = moves.record(server, chain, "rollback", now, earlier[place], why, previous=previous, weights=weights)
    return now, earlier[place], entry


def _earlier(chain: Chain, now: str, there: set[str]) -> list[str]:
    """Returns the champions before the present one that still exist, oldest first, none twice in a row."""
    stack = champions(chain.events())
    if stack and stack[-1] == now:
        stack.pop()
    left = [version for version in stack if version in there - {now}]
    return [version for place, version in enumerate(left) if place == 0 or left[place - 1] != version]


def _place(name: str, now: str, earlier: list[str], steps: int, to: str | None) -> int:
    """Returns which of the earlier champions is meant."""
    if not earlier:
        raise ValueError(f"{name}: version {now} is the first champion, so there is none to put back")
    shown = ", ".join(reversed(earlier))
    if to is not None:
        if to not in earlier:
            remedy = f"`promote --version {to}` judges it"
            raise ValueError(f"{name}: version {to} is no champion before version {now}; those are: {shown}; {remedy}")
        return len(earlier) - 1 - earlier[::-1].index(to)
    if not 1 <= steps <= len(earlier):
        raise ValueError(f"{name}: {steps} steps back cannot be gone; champions before version {now}: {shown}")
    return len(earlier) - steps
