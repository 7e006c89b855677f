"""Stage distill: params distill, sampling, trigflow; data/models/trigflow/<size>, data/models/teacher, data/latents
-> data/models/student/<size>."""

import argparse
from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.registry import track


def main() -> None:
    """Distils a student by sCM + LADD on Ray Train and writes its EMA as a stock SanaSprintPipeline folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", required=True)
    size = parser.parse_args().size
    params, sampling = config.load(config.Distill), config.load(config.Sampling)
    trig = config.load(config.TrigFlow)
    with track.stage("distill", size, distill=params, sampling=sampling, trigflow=trig) as run:
        from sana_sprint.models import bundle
        from sana_sprint.training import launch

        data = Path("data").resolve()
        start = data / "models/trigflow" / size
        inputs = [storage.digest(p) for p in (start, data / "models/teacher", data / "latents")]
        job = launch.Job(
            size=size,
            trigflow=start,
            teacher=data / "models/teacher",
            latents=data / "latents",
            checkpoints=data / "checkpoints/distill" / size,
            grids=data / "grids/training" / size,
            curves=data / f"checkpoints/distill/{size}-curves.json",
            params=params,
            sampling=sampling,
            sigma_d=trig.sigma_d,
            key=storage.digest_of([inputs, params.model_dump(), trig.model_dump()]),
            recorder=run.recorder(),
        )
        final = launch.run(job)
        student = launch.averaged(final, start)
        how = sampling.model_dump() | trig.model_dump()
        frozen = bundle.load_frozen_parts(Path("data/models/trigflow") / size)  # its configs keep the path as given
        bundle.save_student(data / "models/student" / size, student, frozen, how)
        storage.write_json(data / f"metrics/curves/distill-{size}.json", storage.read_json(job.curves))
        launch.clear(job.checkpoints)


if __name__ == "__main__":
    main()
