"""What the teacher's fine-tune is for: data/models/foundation, data/latents
-> data/reports/stability/{curves.json, table.md, gradients.png, fine_tunes.png, staged.png, index.html}.

Short fine-tunes with time as 1000 t or t, with QK-norm or without, and sCM from each with its gradient norms
(arXiv:2503.09641, section 3.1); then the fine-tune of all layers together beside that of the time embedding first,
whose other layers meet the full rate as they join, or are warmed up as all layers are at the start. All at raised
learning rates too, at which a small network shows what a large one shows at its own (arXiv:2309.14322)."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import config, storage

if TYPE_CHECKING:
    import lightning as L
    from diffusers import SanaTransformer2DModel
    from lightning.pytorch.callbacks import Callback

    from sana_sprint.data.loader import Latents

OUT = Path("data/reports/stability")
Curves = dict[str, Any]  # metric to [step, value] of every step
SCM = ("student/grad_norm", "student/tangent_norm")
STAGED = {  # share of the steps in which the time embedding moves alone, whether the join has a warm-up
    "all layers together": (0.0, False),
    "time embedding first": (0.5, False),
    "time embedding first, join warmed up": (0.5, True),
}
MEASURES: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "largest": max}


def main() -> None:
    """Runs all trainings and writes curves and table."""
    from sana_sprint.data.loader import Latents
    from sana_sprint.evaluation import pages, plots
    from sana_sprint.models import bundle, threads

    threads.use_fastest()
    wanted = config.read(Path("pipelines/ablation/variants.yaml"))["stability"]
    data, sigma_d = Latents(Path("data/latents"), "train"), config.load(config.TrigFlow).sigma_d
    base = bundle.load_transformer(Path("data/models/foundation"))
    teacher, tunes, gradients = config.load(config.Teacher), {}, {}
    for time, norm in ((1000, False), (1000, True), (1, False), (1, True)):
        name = f"{'1000 t' if time == 1000 else 't'}, {'QK-norm' if norm else 'no QK-norm'}"
        tuned, _ = fine_tuned(variant(base, time, norm), data, short(teacher, wanted["fine_tune_steps"]), 0, name)
        for rate in wanted["rates"]:
            told = f"{name}, rate x {rate}"
            params = short(teacher, wanted["fine_tune_steps"], constant(teacher.flow.optimizer, rate, math.inf))
            _, tunes[told] = fine_tuned(variant(base, time, norm), data, params, 0, told)
            gradients[told] = distilled(tuned, time, data, unclipped(rate, wanted["scm_iterations"]), sigma_d, told)
    stages = staged(base, data, teacher, wanted["staged_steps"], wanted["staged_rates"])
    storage.write_json(OUT / "curves.json", {"scm": gradients, "fine_tune": tunes, "staged": stages})
    page = table(gradients, tunes, stages)
    storage.write_text(OUT / "table.md", page)
    plots.compared(gradients, SCM, OUT / "gradients.png", "log")
    plots.compared(tunes, ("loss", "grad_norm"), OUT / "fine_tunes.png", "log")
    plots.compared(stages, ("loss", "grad_norm"), OUT / "staged.png")
    words = (
        "Short fine-tunes of the base model and sCM from each: time as 1000 t or t, with QK-norm or without, at the "
        "profile's learning rate and above it, without clipping. Then the fine-tune whose time embedding moves alone "
        "for half of the steps, its other layers joining at the full rate or by a warm-up, beside that of all layers."
    )
    shown = [OUT / f"{name}.png" for name in ("gradients", "fine_tunes", "staged")]
    pages.write_experiment(OUT / "index.html", "Stability", words, page, shown)
    print(page)


def staged(
    base: "SanaTransformer2DModel", data: "Latents", teacher: config.Teacher, steps: int, rates: list[float]
) -> dict[str, Curves]:
    """Returns the curves of the fine-tunes in one stage and in two, by name, at each factor on the rate."""
    found = {}
    for rate in rates:
        params = short(teacher, steps, constant(teacher.flow.optimizer, rate))
        for name, (alone, warm) in STAGED.items():
            told = f"{name}, rate x {rate}"
            _, found[told] = fine_tuned(variant(base, 1, True), data, params, int(alone * steps), told, warm)
    return found


def unclipped(rate: float, iterations: int) -> config.Distill:
    """Returns the params of sCM alone at `rate` times the student's, without clipping of gradients."""
    params = config.load(config.Distill)
    student = params.student.model_copy(update={"lr": params.student.lr * rate, "grad_norm_max": math.inf})
    return params.model_copy(update={"recipe": "scm", "iterations": iterations, "student": student})


def constant(optimizer: config.Optimizer, rate: float, grad_norm_max: float | None = None) -> config.Optimizer:
    """Returns an optimiser of `rate` times the learning rate, which does not fall: layers that move from the middle on
    are to meet it as those do that move from the start. It clips as the profile does, or at `grad_norm_max`."""
    clip = {"grad_norm_max": grad_norm_max} if grad_norm_max else {}
    return optimizer.model_copy(update={"lr": optimizer.lr * rate, "decay_share": 0.0} | clip)


def short(params: config.Teacher, steps: int, optimizer: config.Optimizer | None = None) -> config.Teacher:
    """Returns the params of a fine-tune of `steps`."""
    changes = {"steps": steps} | ({"optimizer": optimizer} if optimizer else {})
    return params.model_copy(update={"flow": params.flow.model_copy(update=changes)})


def variant(base: "SanaTransformer2DModel", time: float, qk_norm: bool) -> "SanaTransformer2DModel":
    """Returns the base's weights in a network that sees `time` times the flow time in [0, 1]."""
    from sana_sprint.models import networks

    made = networks.reshaped(base, qk_norm="rms_norm_across_heads" if qk_norm else None, timestep_scale=0.001)
    gains = {k: v for k, v in made.state_dict().items() if ".norm_q." in k or ".norm_k." in k}
    made.load_state_dict(gains | base.state_dict(), strict=True)
    made.time_embed.emb.time_proj.scale = time
    return made


def fine_tuned(
    network: "SanaTransformer2DModel",
    data: "Latents",
    params: config.Teacher,
    alone: int,
    name: str,
    warm_join: bool = False,
) -> tuple["SanaTransformer2DModel", dict[str, Any]]:
    """Returns the average of a fine-tune and its curves; in the first `alone` steps only the time embedding moves. The
    layers that join then have no moments yet, as at a start; `warm_join` warms all up once more. One that diverges ends
    at that step, which is None in its curves."""
    import torch
    from lightning.pytorch.callbacks import LambdaCallback

    from sana_sprint.models.networks import Text
    from sana_sprint.training import callbacks, draws, flow, optim

    def freeze(_trainer: "L.Trainer", module: Any, _batch: Any, index: int) -> None:
        module.transformer.requires_grad_(index >= alone)
        module.transformer.time_embed.requires_grad_(True)

    def warm_up(trainer: "L.Trainer", _module: Any, optimizer: Any) -> None:
        since = trainer.global_step - alone
        if warm_join and since >= 0:
            for group in optimizer.param_groups:
                group["lr"] *= optim.lr_scale(since, params.flow.steps, params.flow.optimizer.warmup_steps, 0.0)

    torch.manual_seed(params.seed)
    module = flow.FlowTraining(network.train(), Text(*data.null), params.flow, params.seed)
    batches = draws.Batches(data, params.flow.batch, params.seed, params.flow.steps, draws.Share(0, 1))
    curves, watch = kept()
    stage = LambdaCallback(on_train_batch_start=freeze, on_before_optimizer_step=warm_up)
    try:
        flow.fit(module, batches, params.flow.steps, [stage, watch], name)
    except callbacks.NotFinite as error:
        print(f"{name}: {error}", flush=True)
        for series in curves.values():
            series.append([len(series) + 1, None])
    return module.averaged.eval(), curves


def distilled(
    teacher: "SanaTransformer2DModel", time: float, data: "Latents", params: config.Distill, sigma_d: float, name: str
) -> dict[str, Any]:
    """Returns the curves of sCM from a teacher, at full depth."""
    import lightning as L
    from torch.utils.data import DataLoader

    from sana_sprint.models import networks
    from sana_sprint.models.networks import Text
    from sana_sprint.training import batches, callbacks, distill, draws

    student = networks.embed_guidance(teacher)
    student.time_embed.time_proj.scale = time
    share = draws.Share(0, 1)
    module = distill.Distillation(student, teacher, Text(*data.null), params, sigma_d, share)
    pairs = batches.Pairs(data, params.global_batch, params.seed, params.iterations, share)
    curves, watch = kept()
    callbacks.quiet()
    trainer = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        devices=1,
        callbacks=[callbacks.Progress(f"sCM, {name}", params.iterations), watch],
    )
    trainer.fit(module, DataLoader(pairs, batch_size=None))
    return curves


def kept() -> tuple[dict[str, Any], "Callback"]:
    """Returns curves and the callback that fills them, [step, value] for every step; None where it is not finite."""
    from lightning.pytorch.callbacks import LambdaCallback

    curves: dict[str, Any] = {}

    def keep(trainer: "L.Trainer", _module: Any, _outputs: Any, _batch: Any, index: int) -> None:
        for name, value in trainer.callback_metrics.items():
            curves.setdefault(name, []).append([index + 1, float(value) if math.isfinite(value) else None])

    return curves, LambdaCallback(on_train_batch_end=keep)


def table(gradients: dict[str, Curves], tunes: dict[str, Curves], stages: dict[str, Curves]) -> str:
    """Returns the medians and maxima of norms, and what the losses do as Markdown."""
    norms = [f"{what} {name} norm" for name in ("gradient", "tangent") for what in MEASURES]
    lines = header("sCM from a teacher of", *norms)
    for name, curves in gradients.items():
        cells = [f"{measure(values(curves, metric)):.3g}" for metric in SCM for measure in MEASURES.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *header("fine-tune", "largest gradient norm", "largest loss", "loss at the end")]
    for name, curves in tunes.items():
        loss = values(curves, "loss")
        told = f"{max(values(curves, 'grad_norm')):.3g} | {max(loss):.3f} | {statistics.mean(loss[-20:]):.3f}"
        lines.append(f"| {name} | {told} |")
    after = ("loss before the middle", "five steps after it", "largest", "at the end")
    lines += ["", *header("fine-tune in two stages, and in one", *after)]
    for name, curves in stages.items():
        loss = values(curves, "loss")
        half = len(loss) // 2
        parts = [statistics.mean(part) for part in (loss[half - 20 : half], loss[half : half + 5])]
        parts += [max(loss[half:]), statistics.mean(loss[-20:])]
        lines.append(f"| {name} | " + " | ".join(f"{part:.3f}" for part in parts) + " |")
    return "\n".join(lines) + "\n"


def header(*cells: str) -> list[str]:
    """Returns the first two lines of a table."""
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def values(curves: Curves, metric: str) -> list[float]:
    """Returns a curve's values; what is not finite counts as infinite, so that it shows as the largest."""
    return [math.inf if value is None else value for _, value in curves[metric]]


if __name__ == "__main__":
    main()
