"""Stage prune: params prune, sampling, evaluate, trigflow; data/models/teacher, data/latents,
data/raw, data/models/judge -> data/models/pruned/<size>."""

import argparse
from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.registry import track


def main() -> None:
    """Cuts the teacher to a size and heals it, with a score before the cut, after it and after healing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", required=True)
    size = parser.parse_args().size
    params, sampling = config.load(config.Prune), config.load(config.Sampling)
    trig, judged = config.load(config.TrigFlow), config.load(config.Evaluate)
    with track.stage("prune", size, prune=params, sampling=sampling, evaluate=judged, trigflow=trig) as run:
        from sana_sprint.data.loader import Latents
        from sana_sprint.evaluation import quick
        from sana_sprint.models import bundle, threads
        from sana_sprint.training import shrink

        threads.use_fastest()
        teacher, latents = Path("data/models/teacher"), Path("data/latents")
        data = Latents(latents, "train")
        score = quick.Score(
            judged, sampling, trig.sigma_d, teacher, Path("data/raw"), Path("data/models/judge"), params.score_prompts
        )
        before = bundle.load_transformer(teacher)
        metrics = {f"before/{k}": v for k, v in score.of_teacher(before).items()}
        cut, importances = shrink.cut(params, wanted(params, size), before, data)
        metrics |= importances | {f"cut/{k}": v for k, v in score.of_student(cut.network).items()}
        del before  # a teacher; healing loads its own
        score.rest()
        from sana_sprint.training import callbacks, kept  # with Lightning, which takes seconds, only now

        keep = kept.of(f"prune/{size}", [teacher, latents], params)
        watch = callbacks.Curves(keep.curves, run.recorder(), 20, keep.start)
        healed = shrink.heal(params, size, cut, teacher, data, [watch], keep)
        metrics |= {f"healed/{k}": v for k, v in score.of_student(healed).items()}
        bundle.save_transformer(Path("data/models/pruned") / size, healed)
        storage.write_json(Path(f"data/metrics/prune-{size}.json"), metrics)
        run.metrics(metrics)
    keep.end(Path(f"data/metrics/curves/prune-{size}.json"))  # now that nothing can fail any more


def wanted(params: config.Prune, size: str) -> config.Size:
    """Returns the section of a size."""
    if size not in params.sizes:
        raise ValueError(f"--size {size}: prune.sizes of the profile names {sorted(params.sizes)}")
    return params.sizes[size]


if __name__ == "__main__":
    main()
