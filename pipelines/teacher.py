"""Stage teacher: params teacher, sampling; data/models/foundation, data/latents -> data/models/teacher."""

from pathlib import Path

from sana_sprint import config
from sana_sprint.registry import track


def main() -> None:
    """Fine-tunes the foundation into the teacher."""
    params, sampling = config.load(config.Teacher), config.load(config.Sampling)
    with track.stage("teacher", teacher=params, sampling=sampling) as run:
        from sana_sprint.models import build, bundle, threads

        threads.use_fastest()
        foundation, latents, out = Path("data/models/foundation"), Path("data/latents"), Path("data/models/teacher")
        begun = build.dense_time(bundle.load_transformer(foundation))
        from sana_sprint.training import callbacks, kept, teacher  # with Lightning, which takes seconds, only now

        keep = kept.of("teacher", [foundation, latents], params)
        watch = callbacks.Curves(keep.curves, run.recorder(), 20, keep.start)
        teacher.fine_tune(params, sampling, begun, foundation, latents, out, [watch], keep)
        run.metrics(watch.last())
    keep.end(Path("data/metrics/curves/teacher.json"))  # now that nothing can fail any more


if __name__ == "__main__":
    main()
