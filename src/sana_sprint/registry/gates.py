"""The gates of a promotion: each condition of the policy with the value found, its bound, and whether it holds.

A gate that cannot be read does not hold: it says which tag is missing and what to do.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from sana_sprint.registry import measured, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow.entities.model_registry import ModelVersion

    from sana_sprint.registry.measured import Measurement, Pair
    from sana_sprint.registry.policy import AgainstChampion, Judged, Margin, Policy

Outcome = Literal["holds", "fails", "unread", "waived"]
TOLD = {"holds": "holds", "fails": "fails", "unread": "cannot be read", "waived": "waived"}
MEGABYTE = 1e6


@dataclass(frozen=True)
class Gate:
    """One condition: what is asked, the value found, the bound it is held to, and what came of it. `remedy` says what
    to do about one that cannot be read."""

    name: str
    value: str
    bound: str
    outcome: Outcome
    remedy: str = ""

    @property
    def holds(self) -> bool:
        """Whether it does not stand in the way."""
        return self.outcome in ("holds", "waived")

    @property
    def reason(self) -> str:
        """Why it does not hold, in words."""
        return f"{self.name}: {self.value}, asked {self.bound}" + (f" ({self.remedy})" if self.remedy else "")

    def row(self) -> list[str]:
        """Returns the row of the table."""
        return [self.name, self.value, self.bound, TOLD[self.outcome]]

    def public(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        return {key: value for key, value in asdict(self).items() if value != ""} | {"holds": self.holds}


def gates(version: ModelVersion, champion: ModelVersion | None, rules: Policy, fault: str | None) -> list[Gate]:
    """Returns every gate of the policy for a version; `fault` says what is wrong with its files. Floors hold for each
    champion, not for the first alone, so that margins cannot add up to a slow decline."""
    judged = version.tags.get(measured.JUDGE, "")
    asked = {str(kind): entry for kind, entry in rules.judges.items()}.get(judged)
    if asked is None:
        return [*_of_itself(version, rules, fault), _unjudged(version, judged, rules)]
    mine = measured.own(version.tags)
    found = [*_of_itself(version, rules, fault), *_bounds(version, mine, asked), *_ceilings(version, mine, asked)]
    if champion is not None:
        found += _against(version, champion, asked.champion)
    return found


def _unjudged(version: ModelVersion, judged: str, rules: Policy) -> Gate:
    """Returns the gate of a judge that the policy does not know: without it no score can be held to anything."""
    asked = f"one of {', '.join(rules.judges)}"
    if not judged:
        return unread("judge", version, measured.JUDGE, asked)
    return Gate("judge", judged, asked, "unread", "mlflow/promotion.yaml asks nothing of it: add it there")


def steps_told(number: str) -> str:
    """Returns a step count in words."""
    return f"{number} step{'' if number == '1' else 's'}"


def told(pair: Pair) -> str:
    """Returns a score with its standard error."""
    return f"{pair[0]:.3f} ± {pair[1]:.3f}"


def unread(name: str, version: ModelVersion, tag: str, bound: str, remedy: str = "") -> Gate:
    """Returns the gate that a missing tag keeps from being read."""
    again = remedy or f"`dvc repro --force --single-item register@{version.tags.get('size', 'SIZE')}` writes it"
    return Gate(name, f"version {version.version} has no tag '{tag}'", bound, "unread", again)


def _outcome(holds: bool) -> Outcome:
    return "holds" if holds else "fails"


def _of_itself(version: ModelVersion, rules: Policy, fault: str | None) -> Iterator[Gate]:
    """Yields the gates of files, licence and card."""
    yield Gate("files", fault or "there", "model_index.json in the store", _outcome(fault is None))
    licence, allowed = version.tags.get(measured.LICENCE), f"one of {', '.join(rules.licences)}"
    if licence is None:
        yield unread("licence", version, measured.LICENCE, allowed)
    else:
        agree = "" if licence in rules.licences else "add it in mlflow/promotion.yaml once its terms are agreed to"
        yield Gate("licence", licence, allowed, _outcome(not agree), agree)
    fields, asked = packed.unpack(version.tags, measured.CARD), ", ".join(rules.card)
    if not rules.card:
        return
    if fields is None:
        yield unread("model card", version, measured.CARD, asked)
        return
    empty = [field for field in rules.card if field not in fields]
    yield Gate("model card", f"without {', '.join(empty)}" if empty else "filled", asked, _outcome(not empty))


def _bounds(version: ModelVersion, mine: Measurement, asked: Judged) -> Iterator[Gate]:
    """Yields the floors, the ceilings and the comparisons with the undistilled student."""
    kinds: list[tuple[dict[str, dict[Any, float]], str, Callable[[float, float], bool]]] = [
        (asked.floors, ">=", lambda value, bound: value >= bound),
        (asked.ceilings, "<=", lambda value, bound: value <= bound),
    ]
    for rows, sign, within in kinds:
        for key, by_steps in rows.items():
            for steps, bound in by_steps.items():
                name, at = f"{key} at {steps_told(steps)}", f"{sign} {bound:.3f}"
                pair = mine.score("student", steps, key)
                yield (
                    _unscored(name, version, at, key)
                    if pair is None
                    else Gate(name, told(pair), at, _outcome(within(pair[0], bound)))
                )
    for key, many in asked.beats_undistilled.items():
        for steps in many:
            name = f"{key} at {steps_told(steps)}"
            pair, other = (mine.score(who, steps, key) for who in ("student", "undistilled"))
            if pair is None or other is None:
                yield _unscored(name, version, "a score of student and undistilled", key)
            else:
                yield Gate(name, told(pair), f"> {other[0]:.3f}, undistilled", _outcome(pair[0] > other[0]))


def _unscored(name: str, version: ModelVersion, bound: str, key: str) -> Gate:
    """Returns the gate of a score that a version lacks."""
    tag = measured.PUBLIC if "/" in key else measured.SCORES
    if tag not in version.tags:
        return unread(name, version, tag, bound)
    remedy = "evaluate did not give it: correct the name in mlflow/promotion.yaml, or evaluate the version again"
    return Gate(name, f"not in tag '{tag}' of version {version.version}", bound, "unread", remedy)


def _ceilings(version: ModelVersion, mine: Measurement, asked: Judged) -> Iterator[Gate]:
    """Yields the ceilings of time and size."""
    for steps, bound in asked.latency_s.items():
        name, at = f"seconds at {steps_told(steps)}", f"<= {bound:g} s"
        taken = (mine.times or {}).get(steps)
        if taken is None:
            yield unread(name, version, measured.LATENCY, at)
        else:
            yield Gate(name, f"{taken:.4g} s", at, _outcome(taken <= bound))
    if asked.size_mb is not None:
        at = f"<= {asked.size_mb:g} MB"
        size = _megabytes(version)
        if size is None:
            yield unread("size", version, measured.BYTES, at)
        else:
            yield Gate("size", f"{size:.1f} MB", at, _outcome(size <= asked.size_mb))


def _megabytes(version: ModelVersion) -> float | None:
    text = version.tags.get(measured.BYTES, "")
    return int(text) / MEGABYTE if text.isdigit() else None


def _against(version: ModelVersion, champion: ModelVersion, rules: AgainstChampion) -> Iterator[Gate]:
    """Yields the gates against the champion. Scores of two protocols do not compare, so under another one there are
    none beyond the first."""
    mine = measured.own(version.tags)
    its = measured.under(champion.tags, mine.digest)
    theirs = champion.tags.get(measured.DIGEST, "none")
    if its is None:
        remedy = "`--reevaluate` scores the champion under the new protocol"
        yield Gate("protocol digest", mine.digest[:12], f"{theirs[:12]}, the champion's", "fails", remedy)
    else:
        again = "" if theirs == mine.digest else ", re-evaluated"
        yield Gate("protocol digest", mine.digest[:12], f"{its.digest[:12]}, the champion's{again}", "holds")
        for steps in rules.steps:
            yield from _metrics(version, champion, (mine, its), steps, rules.metrics)
            if rules.tasks is not None:
                yield from _tasks(version, champion, (mine, its), steps, rules.tasks.margin_se)
        yield from _times(version, champion, (mine, its), rules)
    yield from _sizes(version, champion, rules.size_times)


def _metrics(
    version: ModelVersion,
    champion: ModelVersion,
    both: tuple[Measurement, Measurement],
    steps: str,
    rules: dict[str, Margin],
) -> Iterator[Gate]:
    for key, margin in rules.items():
        name = f"{key} at {steps_told(steps)}"
        pairs = [one.score("student", steps, key) for one in both]
        if pairs[0] is None or pairs[1] is None:
            yield _unscored(name, version if pairs[0] is None else champion, "a score of both", key)
        elif other := _of_another_protocol(name, both, steps, key):
            yield other
        else:
            yield compared(name, pairs[0], pairs[1], margin.margin_se, margin.better)


def _of_another_protocol(name: str, both: tuple[Measurement, Measurement], steps: str, key: str) -> Gate | None:
    """Returns the gate of public scores that do not compare, since they were taken under two protocols; or None."""
    mine, its = (one.under(key.partition("/")[0], steps).get("digest") for one in both)
    if mine == its:
        return None
    value, bound = f"protocol digest {mine or 'none':.12}", f"{its or 'none':.12}, the champion's"
    return Gate(name, value, bound, "fails", "evaluate both under one file of profiles/protocols")


def compared(name: str, mine: Pair, its: Pair, margin_se: float, better: str = "higher") -> Gate:
    """Returns the gate of two measurements: worse by at most `margin_se` standard errors of their difference, which are
    those of independent measurements."""
    allowed = margin_se * math.hypot(mine[1], its[1])
    higher = better == "higher"
    bound = its[0] - allowed if higher else its[0] + allowed
    sign, word = (">=", "less") if higher else ("<=", "plus")
    at = f"{sign} {bound:.3f}, the champion's {its[0]:.3f} {word} {margin_se:g} se"
    return Gate(name, told(mine), at, _outcome(mine[0] >= bound if higher else mine[0] <= bound))


def _tasks(
    version: ModelVersion,
    champion: ModelVersion,
    both: tuple[Measurement, Measurement],
    steps: str,
    margin_se: float,
) -> Iterator[Gate]:
    """Yields a gate for every task that either of the two has."""
    mine, its = (one.tasks_at(steps) for one in both)
    if mine is None or its is None:
        who = version if mine is None else champion
        remedy = "" if mine is None else "`--reevaluate` writes it, as does registering it again"
        yield unread(f"tasks at {steps_told(steps)}", who, measured.TASKS, "scores of both", remedy)
        return
    for task in sorted({*mine, *its}):
        name = f"{task} at {steps_told(steps)}"
        if task in mine and task in its:
            yield _of_another_protocol(name, both, steps, task) or compared(name, mine[task], its[task], margin_se)
        else:
            lacks = version if task not in mine else champion
            value = f"not in tag '{measured.TASKS}' of version {lacks.version}"
            yield Gate(name, value, "scores of both", "unread", "two evaluations of one protocol have the same tasks")


def _times(
    version: ModelVersion, champion: ModelVersion, both: tuple[Measurement, Measurement], rules: AgainstChampion
) -> Iterator[Gate]:
    """Yields the gates of time against the champion's, which compare on one machine."""
    if rules.latency_times is None:
        return
    for steps in rules.steps:
        name = f"seconds at {steps_told(steps)}"
        mine, its = ((one.times or {}).get(steps) for one in both)
        if mine is None or its is None:
            who = version if mine is None else champion
            remedy = "" if mine is None else "`--reevaluate` writes it, as does registering it again"
            yield unread(name, who, measured.LATENCY, "the times of both", remedy)
        elif both[0].machine != both[1].machine:
            at = f"the champion's {its:.4g} s were taken on another machine"
            waived = rules.other_machine == "waive"
            remedy = "" if waived else "evaluate both on one, or let other_machine waive it in mlflow/promotion.yaml"
            yield Gate(name, f"{mine:.4g} s", at, "waived" if waived else "unread", remedy)
        else:
            at = f"<= {rules.latency_times * its:.4g} s, {rules.latency_times:g} times the champion's"
            yield Gate(name, f"{mine:.4g} s", at, _outcome(mine <= rules.latency_times * its))


def _sizes(version: ModelVersion, champion: ModelVersion, times: float | None) -> Iterator[Gate]:
    if times is None:
        return
    mine, its = _megabytes(version), _megabytes(champion)
    if mine is None or its is None:
        who = version if mine is None else champion
        remedy = "" if mine is None else "`--reevaluate` writes it, as does registering it again"
        yield unread("size", who, measured.BYTES, "the sizes of both", remedy)
    else:
        at = f"<= {times * its:.1f} MB, {times:g} times the champion's"
        yield Gate("size", f"{mine:.1f} MB", at, _outcome(mine <= times * its))
