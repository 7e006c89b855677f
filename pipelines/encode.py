"""Stage encode: params encode, sampling; data/raw, data/models/foundation -> data/latents,
data/metrics/encode.json.
"""

import os
import shutil
from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.data import latents
from sana_sprint.models import threads
from sana_sprint.registry import track


def main() -> None:
    """Brings a profile's cache of latents up to date and links it whole into data/latents. The cache is no DVC output:
    it outlives a kill, and the output can come from DVC's run-cache.
    """
    params, sampling = config.load(config.Encode), config.load(config.Sampling)
    with track.stage("encode", encode=params, sampling=sampling) as run:
        threads.use_fastest()
        cache = Path("data/cache/latents") / config.profile()
        summary = latents.encode(params, sampling, Path("data/raw"), Path("data/models/foundation"), cache)
        with storage.whole_folder(Path("data/latents")) as unfinished:
            shutil.copytree(cache, unfinished, copy_function=os.link, dirs_exist_ok=True)
        lasting = {name: summary[name] for name in ("pictures", "captions")}
        storage.write_json(Path("data/metrics/encode.json"), lasting)
        run.metrics(summary)


if __name__ == "__main__":
    main()
