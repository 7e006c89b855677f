"""What a version says of itself in its tags: scores, tasks, times, size and card, so that any machine that reaches the
registry can promote. Written at registration and by a re-evaluation, read by the gates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.registry import packed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TAG_LENGTH_MAX = 5000
DIGEST, JUDGE, SCORES, TASKS = "protocol_digest", "judged_by", "scores", "task_scores"
PUBLIC = "public_scores"  # by protocol of profiles/protocols and step count: its digest, scores, tasks
LATENCY, MACHINE, BYTES = "latency_p50_s", "machine", "folder_bytes"
CARD, FILES, LICENCE, WEIGHTS = "card_fields", "folder_digest", "licence", "weights_digest"
REEVALUATION = "reevaluation."  # and the first 16 digits of the protocol's digest
NOTHING, UNKNOWN = "- not recorded", "Unknown"  # so begin a card's sections that have nothing to tell
MACHINE_KEYS = ("cpu", "cores", "threads", "gpu", "torch")

Pair = tuple[float, float]


def judged_by(
    student: Mapping[str, Mapping[str, Any]], protocols: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> str:
    """Returns how evaluate judged, as mlflow/promotion.yaml names it: scenes, classes, geneval where public GenEval
    alone tells right from wrong, or none."""
    first = next(iter(student.values()), {})
    if "overall" not in first:
        public = any("overall" in one["scores"] for by_steps in protocols.values() for one in by_steps.values())
        return "geneval" if public else "none"
    return "scenes" if "fid_scene_clip" in first else "classes"


def checked_protocol(evaluation: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError where evaluate's JSON has another digest than that of the protocol in it."""
    told, found = evaluation["protocol_digest"], storage.digest_of(evaluation["protocol"])
    if told != found:
        raise ValueError(
            f"{path}: protocol_digest is {told:.12}, that of the protocol in it {found:.12}: the file was changed, or "
            "is none of evaluate's; run `dvc repro evaluate` again"
        )


def _pairs(scores: Mapping[str, Any]) -> dict[str, list[float]]:
    return {k: [round(v["value"], 6), round(v["se"], 6)] for k, v in scores.items() if "value" in v}


def compact(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns scores without tasks as JSON that fits a tag: {network: {steps: {score: [value, se]}}}."""
    text = json.dumps({who: {n: _pairs(at) for n, at in per.items()} for who, per in scores.items()})
    assert len(text) <= TAG_LENGTH_MAX, f"scores take {len(text)} characters of a tag"
    return text


def score_tags(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Returns what one tag each holds of evaluate's JSON: size, protocol digest, judge, scores."""
    return {
        "size": evaluation["size"],
        DIGEST: evaluation["protocol_digest"],
        JUDGE: judged_by(evaluation["scores"].get("student", {}), evaluation.get("protocols", {})),
        SCORES: compact(evaluation["scores"]),
    }


def detail_tags(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Returns the tags of the student's tasks by step count, its median time of a picture, the machine that took it,
    and its scores under public protocols."""
    student = evaluation["scores"].get("student", {})
    tasks = {steps: _pairs(at["tasks"]) for steps, at in student.items() if "tasks" in at}
    timed = evaluation.get("latency", {}).get("student", {})
    times = {steps: at["p50_s"] for steps, at in timed.items() if "p50_s" in at}
    machine = {key: evaluation.get("machine", {}).get(key) for key in MACHINE_KEYS}
    public = {
        name: {
            steps: {
                "digest": one["protocol_digest"],
                "scores": _pairs(one["scores"]),
                "tasks": _pairs(one["scores"].get("tasks", {})),
            }
            for steps, one in by_steps.items()
        }
        for name, by_steps in evaluation.get("protocols", {}).items()
    }
    found = packed.pack(TASKS, tasks) | packed.pack(LATENCY, times) | packed.pack(MACHINE, machine)
    return found | (packed.pack(PUBLIC, public) if public else {})


def folder_tags(folder: Path) -> dict[str, str]:
    """Returns the tags of a registered pipeline folder: sha256 of its names and contents, size in bytes, and the fields
    of its card that are filled."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    tags = {FILES: storage.digest(folder), BYTES: str(sum(file.stat().st_size for file in files))}
    readme = folder / "README.md"
    return tags | (packed.pack(CARD, card_fields(readme.read_text())) if readme.is_file() else {})


def card_fields(text: str) -> list[str]:
    """Returns the keys of a card's YAML header that have a value, and the titles of its sections that say something."""
    _, _, rest = text.partition("---\n")
    header, _, body = rest.partition("\n---")
    pairs = (line.partition(":") for line in header.splitlines() if not line.startswith((" ", "-", "#")))
    keys = [key.strip() for key, _, value in pairs if value.strip()]
    sections = (part.partition("\n") for part in f"\n{body}".split("\n## ")[1:])
    return keys + [
        title.strip() for title, _, said in sections if said.strip() and not said.strip().startswith((NOTHING, UNKNOWN))
    ]


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a version: scores by network, steps and name as (value, se), the student's tasks by steps, its
    p50 seconds by steps, the machine, and what public protocols gave the student; None for what was not recorded. A
    public score is called `<protocol>/<score>`."""

    digest: str
    scores: dict[str, dict[str, dict[str, Pair]]] | None
    tasks: dict[str, dict[str, Pair]] | None
    times: dict[str, float] | None
    machine: dict[str, Any] | None
    public: dict[str, dict[str, dict[str, Any]]] | None

    def score(self, who: str, steps: str, key: str) -> Pair | None:
        """Returns value and standard error of a score, or None."""
        protocol, public, name = key.partition("/")
        if public:
            found = self.under(protocol, steps).get("scores", {}).get(name) if who == "student" else None
        else:
            found = (self.scores or {}).get(who, {}).get(steps, {}).get(key)
        return (float(found[0]), float(found[1])) if found else None

    def tasks_at(self, steps: str) -> dict[str, Pair] | None:
        """Returns the student's tasks, public ones among them, or None where there are none."""
        found = dict((self.tasks or {}).get(steps, {}))
        for protocol in self.public or {}:
            found |= {f"{protocol}/{task}": pair for task, pair in self.under(protocol, steps).get("tasks", {}).items()}
        return found or None

    def under(self, protocol: str, steps: str) -> dict[str, Any]:
        """Returns what a public protocol gave: digest, scores and tasks; {} where it gave nothing."""
        return (self.public or {}).get(protocol, {}).get(steps, {})


def _read(tags: Mapping[str, str]) -> Measurement:
    found = (packed.unpack(tags, key) for key in (SCORES, TASKS, LATENCY, MACHINE, PUBLIC))
    return Measurement(tags.get(DIGEST, "none"), *found)


def own(tags: Mapping[str, str]) -> Measurement:
    """Returns the evaluation that a version was registered with."""
    return _read(tags)


def under(tags: Mapping[str, str], digest: str) -> Measurement | None:
    """Returns the evaluation of a version under a protocol, a re-evaluation before its own; None where there is
    none."""
    again = packed.unpack(tags, f"{REEVALUATION}{digest[:16]}")
    if again is not None and again["tags"].get(DIGEST) == digest:
        public = {key: text for key, text in tags.items() if key.startswith(PUBLIC)}  # which no re-evaluation changes
        return _read(public | again["tags"])
    return _read(tags) if tags.get(DIGEST) == digest else None


def reevaluation_tags(evaluation: Mapping[str, Any], by: str, at: str) -> dict[str, str]:
    """Returns the tags that add an evaluation under another protocol to a version, who made it and when."""
    tags = score_tags(evaluation) | detail_tags(evaluation)
    return packed.pack(f"{REEVALUATION}{tags[DIGEST][:16]}", {"tags": tags, "by": by, "at": at})
