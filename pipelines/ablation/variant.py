"""One row of the ablation: the profile's own distillation with a few keys changed, once per seed, seeds side by side
on the cores of the machine. pipelines/ablation/variants.yaml, data/models, data/latents, data/raw
-> data/ablation/<variant>.json with scores per step count and seed, and curves. A seed that is done stays done when the
variant is interrupted. `make ablation` runs the seeds of several variants ahead of their stages, so that no core waits
for the last seed of one of them."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sana_sprint import config, storage

VARIANTS = Path("pipelines/ablation/variants.yaml")
STAGES = VARIANTS.with_name("dvc.yaml")
DATA = Path("data").resolve()
STEPS = (1, 2, 4)
CODE = ("training", "models", "maths", "evaluation", "data")


def main() -> None:
    """Runs the seeds of a variant, one of them in this process, or ahead those of all variants that DVC would run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="variants; with --ahead none stands for all")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--ahead", action="store_true")
    arguments = parser.parse_args()
    content = config.read(VARIANTS)
    shared, variants = content["shared"], content["variants"]
    for name in arguments.names:
        if name not in variants:
            raise ValueError(f"{VARIANTS}: no variant '{name}'; there are {sorted(variants)}")
    if arguments.ahead:
        run_seeds(stale(arguments.names or list(variants)), shared["seeds"])
        return
    (name,) = arguments.names
    variant = dict(variants[name] or {})
    unhealed = variant.pop("unhealed", False)
    changes = merged(shared["distill"], variant)
    if arguments.seed is not None:
        one_seed(name, shared, changes, arguments.seed, unhealed=unhealed)
        return
    run_seeds([name], shared["seeds"])
    parts = [part(name, seed) for seed in shared["seeds"]]
    seeds = [{k: v for k, v in storage.read_json(path).items() if k != "key"} for path in parts]
    told = {"changes": changes | {"unhealed": unhealed}, "seeds": seeds}
    storage.write_json(DATA / f"ablation/{name}.json", told)
    for path in parts:
        path.unlink()


def stale(names: list[str]) -> list[str]:
    """Returns those of the variants that `dvc repro` would run."""
    stages = {f"{STAGES}:variant@{name}": name for name in names}
    words = ["dvc", "status", "--json", *stages]
    status = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return [name for stage, name in stages.items() if stage in status]


def run_seeds(names: list[str], seeds: list[int]) -> None:
    """Runs seeds of variants, one a core at once, on a GPU one after the other. Where one of them failed, names it
    after the others are done and exits with 1."""
    pairs = [(name, seed) for name in names for seed in seeds]
    at_once = 1 if shutil.which("nvidia-smi") else len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(at_once) as pool:
        codes = list(pool.map(lambda pair: process_of(*pair), pairs))
    failed = [pair for pair, code in zip(pairs, codes, strict=True) if code]
    if failed:
        said = ", ".join(f"{name} seed {seed}" for name, seed in failed)
        whole = " ".join(name for name in names if name not in dict(failed))
        rest = f'; `make ablation VARIANTS="{whole}"` makes the table without them' if whole else ""
        raise SystemExit(f"ablation: failed, see above: {said}; what is done stays done{rest}")


def process_of(name: str, seed: int) -> int:
    """Runs one seed in a process of one thread; returns its exit code."""
    words = [sys.executable, __file__, name, "--seed", str(seed)]
    return subprocess.run(words, env=os.environ | {"SANA_SPRINT_THREADS": "1"}, check=False).returncode


def part(name: str, seed: int) -> Path:
    """Returns where one seed's result lies until the variant is whole."""
    return DATA / f"cache/ablation/{name}-{seed}.json"


def key_of(shared: dict[str, Any], section: dict[str, Any], *, unhealed: bool) -> str:
    """Returns the digest of all that a seed's result rests on: params, models, data, code."""
    kinds = (config.Sampling, config.Evaluate, config.TrigFlow, config.Prune)
    params = [config.load(kind).model_dump() for kind in kinds]
    folders = [DATA / name for name in ("models/trigflow", "models/teacher", "models/judge", "latents", "raw")]
    code = sorted(path for name in CODE for path in Path("src/sana_sprint", name).glob("*.py"))
    inputs = [storage.digest(path) for path in (*folders, *code)]
    return storage.digest_of([inputs, shared["size"], shared["prompts"], section, params, unhealed])


def merged(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns nested content with the changes laid over it."""
    out = dict(content)
    for key, value in changes.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def one_seed(name: str, shared: dict[str, Any], changes: dict[str, Any], seed: int, *, unhealed: bool) -> None:
    """Distils once and scores the averaged student."""
    profile = Path(f"profiles/{config.profile()}.yaml")
    section = merged(config.read(profile)["distill"], changes) | {"seed": seed}
    params = config.Distill.model_validate(section)
    key, result = key_of(shared, section, unhealed=unhealed), part(name, seed)
    if result.is_file() and storage.read_json(result).get("key") == key:
        sys.stdout.write(f"ablation {name} seed {seed}: done before\n")
        return
    from sana_sprint.evaluation import quick
    from sana_sprint.models import threads
    from sana_sprint.training import job, trajectories

    threads.use_fastest()
    sampling, judged = config.load(config.Sampling), config.load(config.Evaluate)
    sigma_d = config.load(config.TrigFlow).sigma_d
    models, raw, size = DATA / "models", DATA / "raw", shared["size"]
    judge = models / "judge"
    score = quick.StudentScorer(judged, sampling, sigma_d, models / "teacher", raw, judge, shared["prompts"])
    watch = quick.StudentScorer(judged, sampling, sigma_d, models / "teacher", raw, judge, params.score_prompts)
    latents = DATA / "latents"
    if params.latents == "teacher":  # one set for all seeds of the student
        latents = trajectories.drawn(latents, models / "teacher", sampling, 0, DATA / "cache/trajectories")
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        start = cut(size, here / "trigflow") if unhealed else models / "trigflow" / size
        task = job.Job(
            size=f"{name} seed {seed}",
            trigflow=start,
            teacher=models / "teacher",
            latents=latents,
            checkpoints=here / "checkpoints",
            grids=DATA / f"grids/ablation/{name}-{seed}",
            curves=here / "curves.json",
            params=params,
            sampling=sampling,
            sigma_d=sigma_d,
            key=key,
            recorder=None,
            scorer=watch if params.score_prompts else None,
        )
        told = {"key": key, "seed": seed} | outcome(task, start, score)
    if "scores" in told:
        told["protocol_digest"] = protocol_digest(score)
    storage.write_json(result, told)
    sys.stdout.write(f"ablation {name} seed {seed}: {told.get('scores', told.get('ill'))}\n")


def outcome(task: Any, start: Path, scorer: Any) -> dict[str, Any]:
    """Distils and returns scores, curves and how often the run went back; of a run that was given up, why."""
    from sana_sprint.training import attempts, checkpoints, draws, health, job

    try:
        attempts.fit(task, draws.Share(0, 1), lambda: {"accelerator": "auto", "devices": 1})
    except health.Ill as ill:
        return {"ill": str(ill)}
    returns = checkpoints.state(task.final)["attempt"]
    curves = storage.read_json(task.curves)
    return {"scores": scored(scorer, job.averaged(task.final, start)), "returns": returns, "curves": curves}


def protocol_digest(scorer: Any) -> str:
    """Returns the digest of all that a seed's scores rest on but the student: prompts, noise, times, judge."""
    from sana_sprint.evaluation import protocol

    params, sampling = scorer.params, scorer.sampling
    judge = {"kind": params.judge, "digest": storage.digest(scorer.judge)}
    described = protocol.describe(scorer.score.prompts, params, sampling, scorer.sigma_d, judge, params.batch)
    return protocol.digest(described | {"times": sampling.times})


def cut(size: str, folder: Path) -> Path:
    """Writes the pruned network as it is before healing, as stage convert writes the healed one; returns its folder."""
    from sana_sprint.data.loader import Latents
    from sana_sprint.models import bundle
    from sana_sprint.training import shrink

    params, data, teacher = config.load(config.Prune), Latents(DATA / "latents", "train"), DATA / "models/teacher"
    smaller, _ = shrink.cut(params, params.sizes[size], bundle.load_transformer(teacher), data)
    how = config.load(config.Sampling).model_dump() | config.load(config.TrigFlow).model_dump()
    bundle.save_student(folder, smaller.network, bundle.load_frozen_parts(teacher), how)
    return folder


def scored(scorer: Any, student: Any) -> dict[str, dict[str, float]]:
    """Returns the overall score and its standard error per step count."""
    found = {str(steps): scorer.score.of_steps(student, steps) for steps in STEPS}
    return {steps: {"value": one["overall"], "se": one["overall_se"]} for steps, one in found.items()}


if __name__ == "__main__":
    main()
