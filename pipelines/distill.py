"""Stage distill: params distill, sampling, evaluate, trigflow; data/models/{trigflow/<size>, teacher, judge},
data/latents, data/raw -> data/models/student/<size>."""

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
    judged = config.load(config.Evaluate)
    with track.stage("distill", size, distill=params, sampling=sampling, evaluate=judged, trigflow=trig) as run:
        from sana_sprint.evaluation import quick
        from sana_sprint.models import bundle
        from sana_sprint.training import checkpoints, launch, trajectories
        from sana_sprint.training import job as jobs

        data = Path("data").resolve()
        start = data / "models/trigflow" / size
        teacher, raw, judge = data / "models/teacher", data / "raw", data / "models/judge"
        scorer = quick.StudentScorer(judged, sampling, trig.sigma_d, teacher, raw, judge, params.score_prompts)
        latents = data / "latents"
        if params.latents == "teacher":
            latents = trajectories.drawn(latents, teacher, sampling, params.seed, data / "cache/trajectories")
        inputs = [storage.digest(p) for p in (start, teacher, latents)]
        job = jobs.Job(
            size=size,
            trigflow=start,
            teacher=teacher,
            latents=latents,
            checkpoints=data / "checkpoints/distill" / size,
            grids=data / "grids/training" / size,
            curves=data / f"checkpoints/distill/{size}-curves.json",
            params=params,
            sampling=sampling,
            sigma_d=trig.sigma_d,
            key=storage.digest_of([inputs, params.made_of(), trig.model_dump()]),
            recorder=run.recorder(),
            scorer=scorer if params.score_prompts else None,
        )
        final = launch.run(job)
        student = jobs.averaged(final, start)
        how = sampling.model_dump() | trig.model_dump()
        frozen = bundle.load_frozen_parts(Path("data/models/trigflow") / size)  # its configs keep the path as given
        bundle.save_student(data / "models/student" / size, student, frozen, how)
        storage.write_json(data / f"metrics/curves/distill-{size}.json", storage.read_json(job.curves))
    checkpoints.clear(job.checkpoints)  # now that nothing can fail any more


if __name__ == "__main__":
    main()
