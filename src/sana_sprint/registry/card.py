"""The model card of a student: a Hugging Face README.md with YAML header, written into the registered
folder.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

from sana_sprint.registry import measured

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sana_sprint.registry.register import Student

HUB_LICENCES = (  # that the Hugging Face hub has a field for; the others it wants with name and link
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gemma", "unknown"),
    *("openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m"),
)
UNNAMED = "other"
GRID = "SANA_SPRINT_GRID_G_PER_KWH"
JOULES_PER_KWH = 3.6e6
SCORES = {
    "overall": "overall",
    "seen": "seen combinations",
    "heldout": "held-out combinations",
    "clip_score": "CLIP score",
    "fid_scene_clip": "FID on the corpus CLIP",
    "fid_corpus_clip": "FID on the corpus CLIP",
}
PAPER = "[SANA-Sprint](https://arxiv.org/abs/2503.09641)"


def licence_lines(licence: str, link: str | None) -> list[str]:
    """Returns the lines of the header on the licence. Raises ValueError for one without a name, and for one that the
    hub does not know without a link to its terms."""
    name = licence.lower().replace(" ", "-")
    if name in HUB_LICENCES:
        return [f"license: {name}"]
    if name == UNNAMED:
        raise ValueError(f"licence '{licence}' names none: give its own name, and where its terms are as licence_link")
    if not link:
        raise ValueError(f"licence {licence}: the hub does not know it: give where its terms are as licence_link")
    return [f"license: {UNNAMED}", f"license_name: {name}", f"license_link: {link}"]


def header(student: Student) -> str:
    """Returns the YAML block that the Hugging Face hub reads."""
    lines = [
        *licence_lines(student.licence, student.licence_link),
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [sana-sprint, text-to-image, few-step]",
        *emissions_line(student.evaluation),
    ]
    return "\n".join(["---", *lines, "---"])


def energy_j(evaluation: Mapping[str, Any]) -> dict[int, float]:
    """Returns the joules of a picture by the student's step count, where the device told them."""
    timed = evaluation.get("latency", {}).get("student", {})
    return {int(steps): at["energy_j"] for steps, at in timed.items() if "energy_j" in at}


def grid_g_per_kwh() -> float | None:
    """Returns SANA_SPRINT_GRID_G_PER_KWH, the grams of CO2eq that a kWh of the user's grid stands for, or None. Raises
    ValueError when it is no positive number."""
    text = os.environ.get(GRID, "").strip()
    if not text:
        return None
    try:
        grams = float(text)
    except ValueError:
        grams = math.nan
    if not 0 < grams < math.inf:
        raise ValueError(f"{GRID} is {text!r}, not a positive number of grams of CO2eq per kWh")
    return grams


def emissions_line(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns the line of the header on emissions, as the hub asks for it; [] where energy or grid is not known."""
    spent, grid = energy_j(evaluation), grid_g_per_kwh()
    if not spent or grid is None:
        return []
    steps = max(spent)
    source = f"the device's energy counter while it drew, for one picture in {steps} steps, at {grid:g} g/kWh"
    told = {
        "emissions": float(f"{spent[steps] / JOULES_PER_KWH * grid:.3g}"),
        "source": f"{source}; training is not in it",
    }
    return [f"co2_eq_emissions: {json.dumps(told | {'hardware_used': device(evaluation)})}"]


def device(evaluation: Mapping[str, Any]) -> str:
    """Returns what evaluate drew on."""
    machine = evaluation.get("machine", {})
    return str(next((machine[key] for key in ("gpu", "cpu") if machine.get(key) not in (None, "none")), "not recorded"))


def energy(evaluation: Mapping[str, Any]) -> str:
    """Returns the section on energy; empty where the device told nothing."""
    spent, grid = energy_j(evaluation), grid_g_per_kwh()
    if not spent:
        return ""
    told = {steps: f"{joules:.4g} J" for steps, joules in sorted(spent.items())}
    if grid is not None:
        told = {
            n: f"{text}, {spent[n] / JOULES_PER_KWH * grid:.3g} g CO2eq at {grid:g} g/kWh" for n, text in told.items()
        }
    lines = "\n".join(f"- in {steps} step{'s' * (steps > 1)}: {text}" for steps, text in told.items())
    return f"""## Energy

Of one picture, by the device's own counter ({device(evaluation)}), in batches; training is not in it.

{lines}

"""


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


def public_table(protocols: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns a Markdown table of the student's scores under public protocols, a row for each score; empty where there
    are none."""
    rows = [
        [name, str(one["protocol_digest"])[:12], steps, key, score(value)]
        for name, by_steps in protocols.items()
        for steps, one in sorted(by_steps.items())
        for key, value in (one["scores"] | one["scores"].get("tasks", {})).items()
        if "value" in value
    ]
    if not rows:
        return ""
    table = [["protocol", "digest", "steps", "score", "value"], ["---"] * 5, *rows]
    return "\n\nThe student under public protocols:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table)


def bullets(values: Mapping[str, Any]) -> str:
    """Returns a Markdown list of names and values."""
    return "\n".join(f"- {key}: `{value}`" for key, value in values.items()) or measured.NOTHING


def scores(evaluation: Mapping[str, Any]) -> str:
    """Returns what the card says of scores."""
    if not evaluation["scores"]:
        return measured.NOTHING
    return f"""Value ± standard error. Protocol digest: `{evaluation["protocol_digest"]}`. `undistilled` is the same
network before distillation, `teacher` the network it learned from.

{score_table(evaluation["scores"])}{task_table(evaluation["scores"]["student"])}{
        public_table(evaluation.get("protocols", {}))
    }"""


def licences(student: Student) -> str:
    """Returns the section on the licence of each part."""
    parts = {name.replace("_", " "): licence for name, licence in student.part_licences.model_dump().items()}
    rows = "\n".join(f"| {name} | {licence or 'unknown'} |" for name, licence in parts.items())
    first = "" if any(parts.values()) else f"{measured.UNKNOWN} of every part.\n\n"
    return f"{first}The student as a whole: {student.licence}.\n\n| part | licence |\n| --- | --- |\n{rows}"


def about(student: Student) -> str:
    """Returns what the card says first: what the student is, and how it was made as far as that is known here."""
    sampling = student.sampling
    draws = (
        f"draws in {', '.join(sorted(sampling['times']))} steps at {sampling['width_px']} x {sampling['height_px']} px"
    )
    if student.elsewhere:
        return f"""A text-to-image student that {draws}. It was made elsewhere: by which method, from which teacher, on
which data and at what cost is unknown here, beyond the words above."""
    return f"""A text-to-image student of size `{student.evaluation["size"]}` that {draws}, distilled by {PAPER} (sCM +
LADD) from a SANA teacher."""


def limits(student: Student) -> str:
    """Returns what is known of what it cannot do."""
    knows = (
        "Which captions it knows is unknown here, and so is what it was trained to do at other sizes and step counts."
        if student.elsewhere
        else "It knows the captions of its corpus and nothing else: other words, other sizes and other step counts are "
        "outside what was trained and scored."
    )
    return f"{knows} Scores are those of the judge named in the protocol and compare only under that protocol."


def write(student: Student) -> str:
    """Returns the card."""
    evaluation, tags, trained = student.evaluation, student.made, student.trained
    data = {"sha256 of manifest.parquet": tags["data_digest"]} if "data_digest" in tags else {}
    data |= {key: value for key, value in trained.items() if key.startswith("prepare.")}
    training = {key: value for key, value in trained.items() if not key.startswith("prepare.")}
    unknown = f"{measured.UNKNOWN}: it was made elsewhere."
    return f"""{header(student)}

# {student.name}

{student.description}

{about(student)}

```python
from diffusers import SanaSprintPipeline

pipeline = SanaSprintPipeline.from_pretrained("this folder")
```

`sampling.json` holds the time list of each step count, the guidance scale and the caption length that it is drawn with.

## Data

{student.told.get("Data") or (unknown if student.elsewhere else bullets(data))}

## Training

{student.told.get("Training") or (unknown if student.elsewhere else bullets(training))}

## Scores

{scores(evaluation)}

{energy(evaluation)}## Limits

{limits(student)}

## Licences

{licences(student)}

## Lineage

{bullets(tags)}

The whole protocol of the scores, every prompt of it, stands in `evaluation/` beside this model in MLflow.
"""
