"""Stage encode: params encode, sampling; data/raw, data/models/foundation -> data/latents,
data/metrics/encode.json.
"""

from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.data import latents
from sana_sprint.models import threads
from sana_sprint.registry import track


def main() -> None:
    """Runs the stage in the repository root."""
    params, sampling = config.load(config.Encode), config.load(config.Sampling)
    with track.stage("encode", encode=params, sampling=sampling) as run:
        threads.use_fastest()
        summary = latents.encode(
            params, sampling, Path("data/raw"), Path("data/models/foundation"), Path("data/latents")
        )
        storage.write_json(Path("data/metrics/encode.json"), summary)
        run.metrics(summary)


if __name__ == "__main__":
    main()
