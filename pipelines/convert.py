"""Stage convert: params convert, sampling, trigflow; data/models/pruned/<size> -> data/models/trigflow/<size>."""

import argparse
from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.registry import track


def main() -> None:
    """Proves the flow -> TrigFlow map lossless on this network and writes it as a SanaSprintPipeline folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", required=True)
    size = parser.parse_args().size
    params, sampling = config.load(config.Convert), config.load(config.Sampling)
    trig = config.load(config.TrigFlow)
    with track.stage("convert", size, convert=params, sampling=sampling, trigflow=trig) as run:
        from sana_sprint.data.loader import Latents
        from sana_sprint.models import bundle
        from sana_sprint.training import convert

        models, data = Path("data/models"), Latents(Path("data/latents"), "eval")
        student = bundle.load_transformer(models / "pruned" / size)
        errors = convert.prove(params, student, data, sampling.guidance, trig.sigma_d)
        frozen = bundle.load_frozen_parts(models / "teacher")
        how = sampling.model_dump() | trig.model_dump()
        bundle.save_student(models / "trigflow" / size, student, frozen, how)
        storage.write_json(Path(f"data/metrics/convert-{size}.json"), errors)
        run.metrics(errors)


if __name__ == "__main__":
    main()
