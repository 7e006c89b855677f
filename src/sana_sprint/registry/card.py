"""The model card of a student: a Hugging Face README.md with YAML header, written into the registered
folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sana_sprint.registry.register import Student

HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "openrail",
    "openrail++",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
    "unknown",
)
SCORES = {
    "overall": "overall",
    "seen": "seen combinations",
    "heldout": "held-out combinations",
    "clip_score": "CLIP score",
    "fid_scene_clip": "FID on the corpus CLIP",
    "fid_corpus_clip": "FID on the corpus CLIP",
}
PAPER = "[SANA-Sprint](https://arxiv.org/abs/2503.09641)"


def header(licence: str) -> str:
    """Returns the YAML block that the Hugging Face hub reads."""
    licence = licence.lower()
    lines = [f"license: {licence}"] if licence in HUB_LICENCES else ["license: other", f"license_name: {licence}"]
    lines += [
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [sana-sprint, text-to-image, few-step]",
    ]
    return "\n".join(["---", *lines, "---"])


def score(entry: Mapping[str, float] | None) -> str:
    """Returns a score with its standard error, or a dash for one that was not measured."""
    return "-" if entry is None else f"{entry['value']:.3f} ± {entry['se']:.3f}"


def score_table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns a Markdown table: a row for each network and step count, a column for each score that was
    measured.
    """
    rows = [(who, steps, at) for who, per_steps in scores.items() for steps, at in sorted(per_steps.items())]
    columns = [key for key in SCORES if any(key in at for _, _, at in rows)]
    table = [["network", "steps", *(SCORES[key] for key in columns)], ["---"] * (len(columns) + 2)]
    table += [[who, steps, *(score(at.get(key)) for key in columns)] for who, steps, at in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def task_table(student: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a Markdown table of the student's score per task and step count; empty when there are no
    tasks.
    """
    tasks = sorted({task for at in student.values() for task in at.get("tasks", {})})
    if not tasks:
        return ""
    steps = sorted(student)
    table = [["task", *(f"{n} steps" for n in steps)], ["---"] * (len(steps) + 1)]
    table += [[task, *(score(student[n].get("tasks", {}).get(task)) for n in steps)] for task in tasks]
    return "\n\nThe student by task:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table)


def bullets(values: Mapping[str, Any]) -> str:
    """Returns a Markdown list of names and values."""
    return "\n".join(f"- {key}: `{value}`" for key, value in values.items()) or "- not recorded"


def scores(evaluation: Mapping[str, Any]) -> str:
    """Returns what the card says of scores."""
    if not evaluation["scores"]:
        return "- not recorded"
    return f"""Value ± standard error. Protocol digest: `{evaluation["protocol_digest"]}`. `undistilled` is the same
network before distillation, `teacher` the network it learned from.

{score_table(evaluation["scores"])}{task_table(evaluation["scores"]["student"])}"""


def write(student: Student) -> str:
    """Returns the card."""
    evaluation, sampling, tags, trained = student.evaluation, student.sampling, student.made, student.trained
    data = {key: value for key, value in trained.items() if key.startswith("prepare.")}
    training = {key: value for key, value in trained.items() if not key.startswith("prepare.")}
    size = evaluation["size"]
    return f"""{header(student.licence)}

# {student.name}

{student.description}

A text-to-image student of size `{size}` that draws in {", ".join(sorted(sampling["times"]))} steps at
{sampling["width_px"]} x {sampling["height_px"]} px, distilled by {PAPER} (sCM + LADD) from a SANA teacher.

```python
from diffusers import SanaSprintPipeline

pipeline = SanaSprintPipeline.from_pretrained("this folder")
```

`sampling.json` holds the time list of each step count, the guidance scale and the caption length it was
scored with.

## Data

{bullets(({"sha256 of manifest.parquet": tags["data_digest"]} if "data_digest" in tags else {}) | data)}

## Training

{bullets(training)}

## Scores

{scores(evaluation)}

## Limits

It knows the captions of its corpus and nothing else: other words, other sizes and other step counts are
outside what was trained and scored. The scores are those of the judge named in the protocol and compare only
under that protocol.

## Lineage

{bullets(tags)}

Licence: {student.licence}. The whole protocol, every prompt of it, stands in `evaluation/` beside this model
in MLflow.
"""
