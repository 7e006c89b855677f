"""The ablation's table: data/ablation/*.json -> data/reports/ablation/{table.json, table.md, curves.png,
index.html}. A row per variant with the mean over seeds, its standard error and the difference from the variant
`sprint`, paired by seed."""

from pathlib import Path
from typing import Any

import torch

from sana_sprint import storage
from sana_sprint.evaluation import pages, plots, report_tables
from sana_sprint.maths import metrics

FOLDER, OUT = Path("data/ablation"), Path("data/reports/ablation")
AGAINST = "sprint"
STEPS = ("1", "2", "4")
WATCHED = (
    *(f"score/{steps}_step" for steps in STEPS),
    *("student/grad_norm", "student/tangent_norm", "student/logvar", "heads/accuracy", "student/drift"),
)


def main() -> None:
    """Writes table and curves of the variants that are there."""
    results = {path.stem: storage.read_json(path) for path in sorted(FOLDER.glob("*.json"))}
    if AGAINST not in results:
        raise ValueError(f"{FOLDER}: no {AGAINST}.json to compare with; run `make ablation`")
    names = sorted(results, key=lambda name: (name != AGAINST, name))
    check_protocols(results)
    rows = [row(name, results[name], results[AGAINST]) for name in names]
    protocols = report_tables.ablation_protocols(rows)
    storage.write_json(OUT / "table.json", rows)
    storage.write_text(OUT / "table.md", f"{markdown(rows)}\n{protocols}\n")
    curves = {name: well(results[name])[0]["curves"] for name in names if well(results[name])}
    plots.compared(curves, WATCHED, OUT / "curves.png")
    words = (
        "Each row distils the base student again with some keys of the profile changed. Mean over seeds ± its standard "
        f"error (of one seed: over its prompts); gains over {AGAINST} are paired by seed. Curves are those of one "
        f"seed. A seed that fell ill and was given up counts under ill and in no mean. {protocols}"
    )
    pages.write_experiment(OUT / "index.html", "Ablation", words, markdown(rows), [OUT / "curves.png"])
    print((OUT / "table.md").read_text())


def well(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the seeds of a variant that ended with a student."""
    return [one for one in result["seeds"] if "scores" in one]


def digests(result: dict[str, Any]) -> dict[int, str | None]:
    """Returns the digest of the protocol that each seed was scored under, None where it was not kept."""
    return {one["seed"]: one.get("protocol_digest") for one in well(result)}


def check_protocols(results: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError naming a variant of which a seed was scored under another protocol than the one compared with,
    or than the first that tells its own."""
    in_turn = sorted(results, key=lambda name: name != AGAINST)
    known = [(name, seed, digest) for name in in_turn for seed, digest in digests(results[name]).items() if digest]
    for name, seed, digest in known:
        first, _, wanted = known[0]
        if digest != wanted:
            raise ValueError(
                f"{FOLDER / name}.json: seed {seed} was scored under protocol {digest:.12}, {first} by {wanted:.12}; "
                f"run `dvc repro -f -s pipelines/ablation/dvc.yaml:variant@{name}`"
            )


def row(name: str, result: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    """Returns a variant's scores by step count, and what they differ from the one compared with."""
    own = {one["seed"]: one["scores"] for one in well(result)}
    other = {one["seed"]: one["scores"] for one in well(against)}
    scores, gains = {}, {}
    for steps in STEPS:
        scores[steps] = spread([own[seed][steps] for seed in own]) if own else None
        pairs = [(own[seed][steps]["value"], other[seed][steps]["value"]) for seed in own if seed in other]
        found = metrics.mean(torch.tensor([a - b for a, b in pairs]))._asdict() if pairs else None
        gains[steps] = found | {"se": None} if found and len(pairs) == 1 else found  # one pair tells of no spread
    ill = len(result["seeds"]) - len(own)
    kept = set(digests(result).values())
    told = {"variant": name, "changes": result["changes"], "seeds": len(result["seeds"]), "ill": ill}
    told["protocol_digest"] = kept.pop() if len(kept) == 1 else None
    return told | {"scores": scores, "gains": gains}


def spread(scores: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean over seeds with its standard error; of a single seed, the error over its prompts."""
    if len(scores) == 1:
        return scores[0]
    return metrics.mean(torch.tensor([s["value"] for s in scores]))._asdict()


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the table as Markdown."""
    scored = [f"{k} step" + "s" * (k != "1") for k in STEPS]
    head = ["variant", "seeds", "ill", *scored, *(f"gain at {k}" for k in STEPS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in rows:
        found = [one["scores"][k] for k in STEPS]
        scores = [f"{score['value']:.3f} ± {score['se']:.3f}" if score else "-" for score in found]
        gains = [report_tables.gain(one["gains"][k]) for k in STEPS]
        counts = [str(one["seeds"]), str(one["ill"])]
        lines.append("| " + " | ".join([one["variant"], *counts, *scores, *gains]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
