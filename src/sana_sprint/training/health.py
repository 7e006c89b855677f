"""Whether a distillation is well. An ill run stops with one line that names the fault, its likely cause and the
remedy; `attempts.fit` then takes it back to the last good checkpoint, or gives up. NaN is never masked."""

from __future__ import annotations

import math
import os
import resource
import time
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.distributed

from sana_sprint.training import callbacks, checkpoints, sharding
from sana_sprint.training.job import BLOCKS

if TYPE_CHECKING:
    from sana_sprint.config import Distill
    from sana_sprint.training.distill import Distillation

DIVERSITY = "grid/diversity"
SCORE = "score"
TANGENT = "student/tangent_norm"


class Ill(ValueError):  # noqa: N818  a state of the run, worded as a sentence
    """What is wrong, its likely cause and the remedy, in one line. `proved` is the last iteration whose grid was good,
    where a grid is what told: checkpoints after it hold the fault already."""

    def __init__(self, sentence: str, proved: int | None = None) -> None:
        super().__init__(sentence)
        self.proved = proved


def on_all_workers(values: dict[str, float]) -> dict[str, float]:
    """Returns the mean over workers, so that all of them come to the same verdict; a NaN of one is a NaN of all."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or not values:
        return values
    numbers = torch.tensor(list(values.values()), dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        numbers = numbers.cuda()
    torch.distributed.all_reduce(numbers)
    return dict(zip(values, (numbers / torch.distributed.get_world_size()).tolist(), strict=True))


class Health(L.Callback):
    """Judges every step by its metrics, logs what the step does not know of itself, and raises `Ill`."""

    def __init__(self, params: Distill, state: dict[str, Any] | None = None) -> None:
        """`state` is that of the checkpoint from which the run goes on."""
        self.params, self.limits = params, params.health
        self.ill: dict[str, int] = {}  # fault to iterations: each with it counts one up, each without one down
        self.values: dict[str, float] = {}
        self.resumed = state is not None
        self.best = state["best_score"] if state else 0.0  # mean of a grid, that of the undistilled student included
        self.proved = state["proved"] if state else 0  # last iteration whose grid was good
        self.measured = (0, 0.0)  # iteration and instant of the last images_per_s

    @property
    def well(self) -> bool:
        """Whether no fault is running: a checkpoint of this moment is a good one."""
        return not self.ill

    def begin(self, scores: dict[str, float]) -> None:
        """Takes the quick scores of the student before its first step: a run must not fall far below them."""
        self.values = on_all_workers(scores)
        self.look_for_nan()
        self.best = sum(self.values.values()) / max(len(self.values), 1)

    def on_after_backward(self, trainer: L.Trainer, pl_module: Distillation) -> None:  # type: ignore[override]
        """Logs the gradient norm per block of the student, where BLOCKS asks for it."""
        if os.environ.get(BLOCKS) != "1":
            return
        for i, block in enumerate(pl_module.student.transformer.transformer_blocks):
            grads = [p.grad for p in block.parameters() if p.requires_grad and p.grad is not None]
            if grads:  # none in the critics' turns
                pl_module.log(f"student/grad_norm_block_{i:02d}", sharding.whole(torch.nn.utils.get_total_norm(grads)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock of images_per_s."""
        self.measured = (0, time.monotonic())

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        """Refuses latents and captions that are not finite: no return would cure them."""
        for name in ("x_0", "embeds"):
            bad = ~torch.isfinite(batch[name]).flatten(1).all(1)
            if bad.any():
                rows = batch["rows"][bad].tolist()
                what = {"x_0": "latents", "embeds": "caption embeddings"}[name]
                raise ValueError(
                    f"data/latents: the {what} of training pictures {rows[:8]} (numbered from 0) are not finite; "
                    "look at those pictures, then run `dvc repro -f encode`"
                )

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Distillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judges the newest metrics: that they are finite after every turn, the rest after whole iterations."""
        iteration, turn = divmod(batch["step"] + 1, self.params.turns)
        if not turn and iteration % self.params.log_every == 0:
            self.log_run(pl_module, batch_idx + 1, self.params.turns * (self.params.iterations - iteration))
        self.values = on_all_workers(callbacks.newest(trainer))
        self.look_for_nan()
        if not turn:
            self.judge(iteration)

    def look_for_nan(self) -> None:
        """Raises `Ill` for a value that is not finite."""
        for name, value in self.values.items():
            if not math.isfinite(value):
                proved = self.proved if name.startswith(("grid/", "score/")) else None
                sentence = f"{name} is {value}; likely the learning rate is too high: lower {self.rate_of(name)}"
                raise Ill(sentence, proved)

    def log_run(self, module: Distillation, steps: int, left: int) -> None:
        """Logs the drift |averaged - student| / |student|, images a second (each step sees a batch of its own), the
        time left at that rate and the peak memory of this process. `steps` are those since this process began, `left`
        those to come."""
        norm = torch.linalg.vector_norm
        pairs = zip(module.averaged.parameters(), module.student.parameters(), strict=True)
        norms = [(norm(a.detach() - s.detach()), norm(s.detach())) for a, s in pairs]  # one gap at a time in memory
        gap, size = (norm(torch.stack([sharding.whole(one) for one in each])) for each in zip(*norms, strict=True))
        module.log("student/drift", gap / size)
        (before, since), now = self.measured, time.monotonic()
        self.measured = (steps, now)
        per_s = (steps - before) / (now - since)
        module.log("images_per_s", per_s * self.params.global_batch)
        module.log(callbacks.TIME_LEFT, left / per_s)
        on_gpu = module.device.type == "cuda"
        peak = (
            torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resource.getrusage(resource.RUSAGE_SELF)[2] / 1024
        )
        module.log("peak_memory_mb", float(peak))

    def judge(self, iteration: int) -> None:
        """Raises `Ill` for a fault that has lasted as long as the params allow, a good iteration among bad ones being
        worth one of them; in the last iteration two are enough, and one grid is when it shows one picture or scores far
        below an earlier one."""
        faults, patience = self.faults(), self.limits.patience_iterations
        if iteration == self.params.iterations:
            patience = min(patience, 2)
        counts = {name: self.ill.get(name, 0) + (1 if name in faults else -1) for name in self.ill | faults}
        self.ill = {name: count for name, count in counts.items() if count > 0}
        for name, sentence in faults.items():
            if name in (DIVERSITY, SCORE) or self.ill[name] >= patience:
                told = sentence.format(lasted=f"for {self.ill[name]} iterations")
                raise Ill(told, self.proved if name in (DIVERSITY, SCORE) else None)
        if checkpoints.draws_grid(self.params, iteration):
            self.proved = iteration

    def faults(self) -> dict[str, str]:
        """Returns the faults of this moment: metric to sentence, in which {lasted} stands for how long."""
        limits, values, found = self.limits, self.values, self.norms()
        low, high = limits.accuracy
        accuracy = values.get("heads/accuracy", (low + high) / 2)
        if accuracy > high:
            found["heads/accuracy"] = (
                f"the heads win: their accuracy stays above {high:g} {{lasted}} (now {accuracy:.3f}), so they teach "
                "nothing; lower distill.heads.optimizer.lr or distill.heads.steps"
            )
        if accuracy < low:
            found["heads/accuracy"] = (
                f"the heads lose: their accuracy stays below {low:g} {{lasted}} (now {accuracy:.3f}); "
                "raise distill.heads.optimizer.lr or lower distill.ladd_weight"
            )
        deviation = values.get("student/sample_std", 1.0)
        if deviation > limits.sample_std_max:
            found["student/sample_std"] = (
                f"the deviation of the student's latents stays above {limits.sample_std_max:g} {{lasted}} (now "
                f"{deviation:.3g}, that of data is 1): it draws noise; lower {self.levers('distill.student.lr')}"
            )
        if values.get(DIVERSITY, 1.0) < limits.diversity_min:
            found[DIVERSITY] = (
                f"all captions give nearly one picture: the grid's diversity is {values[DIVERSITY]:.3g}, below "
                f"{limits.diversity_min:g}; likely the captions or pictures of data/raw repeat, or {self.cause()}: "
                f"look at data/reports/validation, or lower {self.levers()}; pictures that are alike by nature need "
                "a lower distill.health.diversity_min"
            )
        scores = [value for name, value in values.items() if name.startswith("score/")]
        score = sum(scores) / max(len(scores), 1)
        self.best = max(self.best, score)
        if scores and score < limits.score_kept_min * self.best:
            found[SCORE] = (
                f"the quick score fell from {self.best:.3f} to {score:.3f}: the student forgets what it could draw; "
                f"lower {self.levers('distill.student.lr', 'distill.time.mean')}"
            )
        return found

    def norms(self) -> dict[str, str]:
        """Returns the faults of gradient and tangent norms, as `faults` does. A small network at a low rate shows time
        as 1000 t in its tangent alone; a critic, which takes no derivative along time, shows nothing of it."""
        largest = {name: self.limits.grad_norm_max for name in self.values if name.endswith("/grad_norm")}
        if self.limits.tangent_norm_max and TANGENT in self.values:
            largest[TANGENT] = self.limits.tangent_norm_max
        of_student = (
            "time reaches the network as 1000 t, the teacher lacks QK-norm, or a rate or weight is too high: fine-tune "
            "the teacher by stage teacher, or lower"
        )
        return {
            name: f"{name} stays above {limit:g} {{lasted}} (now {self.values[name]:.3g}); likely "
            f"{of_student if name.startswith('student/') else 'the rate is too high: lower'} "
            f"{self.levers(self.rate_of(name)) if name == 'student/grad_norm' else self.rate_of(name)}"
            for name, limit in largest.items()
            if self.values[name] > limit
        }

    def cause(self) -> str:
        """Returns what outweighs what in the student's loss where its pictures collapse."""
        named = {"ladd": "LADD", "dmd": "distribution matching"}
        strong = " or ".join(word for term, word in named.items() if term in self.params.terms)
        if not strong:
            return "the student's rate is too high"
        return f"{strong} outweighs sCM" if "scm" in self.params.terms else f"{strong} is too strong"

    def levers(self, *first: str) -> str:
        """Returns keys to lower: those given and the weights that the recipe has beside sCM's, or else the rate."""
        weights = {"ladd": "distill.ladd_weight", "dmd": "distill.dmd.weight"}
        keys = [*first, *(key for term, key in weights.items() if term in self.params.terms)]
        *most, last = keys or ["distill.student.lr"]
        return f"{', '.join(most)} or {last}" if most else last

    @staticmethod
    def rate_of(metric: str) -> str:
        """Returns the key of the learning rate behind a metric."""
        return {"heads": "distill.heads.optimizer.lr", "fake_score": "distill.dmd.optimizer.lr"}.get(
            metric.partition("/")[0], "distill.student.lr"
        )
