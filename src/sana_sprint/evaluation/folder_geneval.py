"""GenEval (arXiv:2310.11513) of a folder in its own layout, by Mask2Former and CLIP.

What is seen in a picture is kept, keyed by its bytes, its demand, the judges' weights, rules and code: a run that was
cut short goes on where it was, and one over the same pictures looks at none again. Deleting the cache is always safe.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from sana_sprint import storage
from sana_sprint.evaluation import (
    clip_judge,
    colours,
    detector,
    folder_pictures,
    folder_protocol,
    geneval,
    geneval_judge,
    judging,
    picture_cache,
    tally,
)
from sana_sprint.evaluation.protocol import Prompt
from sana_sprint.maths import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sana_sprint.evaluation.folder_protocol import GenEval


CODE = (clip_judge, colours, detector, folder_pictures, geneval, geneval_judge)


@dataclass(frozen=True)
class Sample:
    """A picture of a prompt's folder."""

    path: Path
    prompt: Prompt


def samples(protocol: GenEval, folder: Path) -> list[Sample]:
    """Returns the pictures of a folder in GenEval's layout, prompt by prompt. Raises ValueError naming what is missing
    or too many."""
    places = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit())
    if len(places) != protocol.prompts:
        raise ValueError(f"{folder}: {len(places)} folders of prompts, the protocol asks for {protocol.prompts}")
    found = []
    for number, place in enumerate(places):
        (demand,) = only_one(geneval.read_metadata(place / "metadata.jsonl"), place / "metadata.jsonl")
        prompt = Prompt(number, place.name, demand["prompt"], demand["tag"], "seen", demand)
        paths = [p for p in sorted(place.glob("samples/*")) if p.suffix in folder_pictures.KINDS and p.stem.isdigit()]
        if len(paths) != protocol.pictures_per_prompt:
            asked = protocol.pictures_per_prompt
            raise ValueError(f"{place / 'samples'}: {len(paths)} pictures, the protocol asks for {asked} a prompt")
        found += [Sample(path, prompt) for path in paths]
    return found


def only_one(lines: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Returns the one line of a prompt's own metadata file."""
    if len(lines) != 1:
        raise ValueError(f"{path}: {len(lines)} lines, a prompt's folder has one")
    return lines


class Kept:
    """Lines of JSON in a file, by key, that outlast a kill: a line cut in the middle is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
            try:
                self.lines[json.loads(line)["key"]] = json.loads(line)
            except (ValueError, KeyError, TypeError):
                break
        storage.write_text(path, "".join(json.dumps(one, sort_keys=True) + "\n" for one in self.lines.values()))

    def add(self, key: str, content: dict[str, Any]) -> None:
        """Appends a line."""
        self.lines[key] = content | {"key": key}
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[key], sort_keys=True) + "\n")


def run(protocol: GenEval, folder: Path, cache: Path, root: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Returns GenEval's scores of a folder in its own layout, and what was seen in every picture; `how` is what the
    protocol's digest says of the drawing."""
    asked = samples(protocol, folder)
    weights = folder_protocol.weights(protocol, root)
    demands = [sample.prompt.demand for sample in asked]
    terms = {"rules": geneval.RULES, "detector_size": protocol.detector_size, "size_px": protocol.size_px.model_dump()}
    terms |= {"detector_rules": detector.RULES, "clip_resize": clip_judge.RESIZE}
    described = protocol.model_dump() | weights | terms | {"demands": storage.digest_of(demands)} | how
    digest = storage.digest_of(described)
    made = picture_cache.made_by(CODE, folder_pictures.LIBRARIES)
    kept = Kept(cache / f"geneval-{storage.digest_of([weights, terms, made])[:16]}.jsonl")
    keys = [storage.digest_of([storage.digest(sample.path), sample.prompt.demand]) for sample in asked]
    wanted = {key: sample for key, sample in zip(keys, asked, strict=True) if key not in kept.lines}
    missing = [(key, Sample(one.path.absolute(), one.prompt)) for key, one in wanted.items()]
    looks = judging.spread(partial(judge, protocol, root.absolute()), missing)
    for (key, _), one in tqdm(looks, total=len(missing), desc="geneval", mininterval=3):
        kept.add(key, one)
    looked = [{k: kept.lines[key][k] for k in ("right", "reason", "seen")} for key in keys]
    return {
        "protocol": described,
        "protocol_digest": digest,
        "pictures": len(asked),
        "scores": by_prompt(asked, looked),
        "looked": [
            {
                "picture": str(s.path.relative_to(folder)),
                "prompt": s.prompt.caption,
                "tag": s.prompt.task,
                "demand": s.prompt.demand,
            }
            | one
            for s, one in zip(asked, looked, strict=True)
        ],
    }


def judge(protocol: GenEval, root: Path) -> Callable[[tuple[str, Sample]], dict[str, Any]]:
    """Returns what looks at a sample, whose key it does not need, and tells "right", "reason" and "seen"."""
    seer = geneval_judge.load(root / protocol.detector.folder, root / protocol.clip.folder, protocol.detector_size)

    def look(share: tuple[str, Sample]) -> dict[str, Any]:
        _, sample = share
        verdict, seen = seer.look(folder_pictures.read(sample.path, protocol.size_px), sample.prompt)
        return {"right": verdict.right, "reason": verdict.reason, "seen": seen}

    return look


def by_prompt(asked: Sequence[Sample], looked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns "overall" (the mean of the tasks) and "tasks" with standard errors over prompts: the pictures of one
    prompt are right or wrong together."""
    rights: dict[int, list[float]] = defaultdict(list)
    prompts = {sample.prompt.index: sample.prompt for sample in asked}
    for sample, one in zip(asked, looked, strict=True):
        rights[sample.prompt.index].append(float(one["right"]))
    means = {index: sum(values) / len(values) for index, values in rights.items()}
    tasks: dict[str, list[float]] = defaultdict(list)
    for index, value in means.items():
        tasks[prompts[index].task].append(value)
    return {
        "overall": tally.plain(tally.mean(list(prompts.values()), [means[index] for index in prompts])),
        "tasks": {
            name: tally.plain(metrics.mean(torch.tensor(values, dtype=torch.float64))) | {"n": len(values)}
            for name, values in sorted(tasks.items())
        },
    }


def results_lines(looked: Sequence[dict[str, Any]]) -> str:
    """Returns GenEval's own results.jsonl, which its summary script reads."""
    lines = []
    for one in looked:
        boxes: dict[str, list[list[float]]] = defaultdict(list)
        for seen in one["seen"]:
            boxes[seen["class"]].append([*seen["box"], seen["score"]])
        line = {"filename": one["picture"], "tag": one["tag"], "prompt": one["prompt"], "correct": one["right"]}
        line |= {"reason": one["reason"], "metadata": json.dumps(one["demand"]), "details": json.dumps(boxes)}
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)
