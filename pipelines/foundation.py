"""Stage foundation: params foundation, sampling; data/raw -> data/models/foundation."""

from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.registry import track


def main() -> None:
    """Trains the small foundation on the corpus, or takes a ready-made one."""
    params, sampling = config.load(config.Foundation), config.load(config.Sampling)
    with track.stage("foundation", foundation=params, sampling=sampling) as run:
        out, curves = Path("data/models/foundation"), Path("data/metrics/curves/foundation.json")
        if params.model.kind == "train":
            from sana_sprint.data import manifest, shards
            from sana_sprint.models import threads

            threads.use_fastest()
            raw = Path("data/raw")
            captions = [row.caption for row in manifest.read(raw, "train")]
            pixels = shards.stack(raw, "train")
            from sana_sprint.training import callbacks, foundation  # with Lightning, which takes seconds, only now

            watch = callbacks.Curves(curves, run.recorder(), 20)
            metrics = foundation.train(params.model, sampling, pixels, captions, out, [watch])
        else:
            from sana_sprint.models import fetch

            metrics = fetch.foundation(params.model, out)
            storage.write_json(curves, {})
        storage.write_json(Path("data/metrics/foundation.json"), metrics)
        run.metrics(metrics)


if __name__ == "__main__":
    main()
