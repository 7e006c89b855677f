"""Compares our distillation step with the reference scheme of reference.py: on the same networks and batch, in one
process, taking turns.

    python tests/benchmarks/distill.py                           the demo profile's size
    python tests/benchmarks/distill.py --compile                 the same, and our step with compiled blocks
    python tests/benchmarks/distill.py --size 0.6B --sweep       published shape, growing batches, on a GPU
    python tests/benchmarks/distill.py --check                   the two schemes' gradients in float32

Needs torch, diffusers, transformers and pydantic (bare.py stands in for the rest where it is missing), and src/ on
PYTHONPATH where the project is not installed. An iteration is one step of the student and one of the heads, each on a
batch of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import bare  # noqa: F401  first: the project's modules import what may be missing
import meters
import shapes
import torch
from reference import Reference
from torch import Tensor

from sana_sprint.models import passes
from sana_sprint.models.networks import Text
from sana_sprint.training import distill, draws

SIGMA_D = 0.5
PARTS = {"autoencoder": "encode pictures", "text_encoder": "encode captions", "teacher": "teacher"}


class Ours(distill.Distillation):
    """The product's module without a trainer around it."""

    def prepare(self, latents: Tensor, text: Text) -> None:
        """Takes the encoded batch, as the stage encode leaves it, and makes the optimizers."""
        self.batch = {"x_0": latents, "misaligned": latents.roll(1, 0), "embeds": text.embeds, "mask": text.mask}
        self.made = dict(zip(self.optimized, self.configure_optimizers(), strict=True))
        self._teacher[0].to(latents.device)

    def optimizer(self, name: str) -> Any:
        return self.made[name]

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nobody reads the log here."""

    def step(self, step: int) -> None:
        self.training_step(self.batch | {"step": step}, step)


class Bench:
    """Both schemes on one set of networks and one batch."""

    def __init__(
        self, shape: shapes.Shape, batch: int, device: str, precision: str, checkpointing: bool = False
    ) -> None:
        self.device, self.size = device, batch
        coders = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        self.networks = shapes.made(shape, device, coders)
        self.pairs = shapes.pairs(shape, batch, self.networks.text_encoder.config.vocab_size, device)
        null = Text(*self.networks.null).to(device)
        with torch.device(device):
            share = draws.Share(0, 1)
            params = shape.params.model_copy(update={"global_batch": batch})
            self.ours = Ours(self.networks.student, self.networks.teacher, null, params, SIGMA_D, share)
        self.ours.to(device).prepare(*shapes.encode(self.networks, self.pairs))
        self.reference = Reference(self.networks, self.ours)
        if checkpointing:
            for network in (self.networks.teacher, self.ours.student.transformer):
                network.train().enable_gradient_checkpointing()

    def turn(self, scheme: str, precision: str, step: int) -> None:
        """One step of a scheme."""
        blocks = self.compiled() if scheme == "compiled" else nullcontext()
        with blocks, torch.autocast(self.device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            if scheme == "reference":
                self.reference.step(self.pairs, step)
            else:
                self.ours.step(step)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Within the block our passes are those of SANA_SPRINT_COMPILE=1."""
        for network in self.ours.passing:
            passes.compile_blocks(network)
        try:
            yield
        finally:
            for network in self.ours.passing:
                for block in network.transformer_blocks:
                    del block.forward

    def iteration(self, scheme: str, precision: str) -> None:
        """A step of the student and a step of the heads."""
        self.turn(scheme, precision, 0)
        self.turn(scheme, precision, 1)

    def state_bytes(self, scheme: str) -> int:
        """Returns what a scheme holds between its steps once it has made one: weights of teacher, student, average and
        heads, gradients, moments. The encoders, which ours does not need, are not counted."""
        ours = self.ours
        optimizers = ours.made if scheme == "ours" else self.reference.optimizers
        networks = [self.networks.teacher, *(getattr(ours, name) for name in ours.networks)]
        weights = [x for network in networks for x in (*network.parameters(), *network.buffers())]
        gradients = [x.grad for x in weights if x.grad is not None]
        states = [one.state.values() for one in optimizers.values()]
        moments = [x for state in states for each in state for x in each.values() if isinstance(x, torch.Tensor)]
        return meters.bytes_of([*weights, *gradients, *moments])

    def breakdown(self, precision: str, count: int) -> dict[str, Counter[str]]:
        """Returns the seconds of each part of an iteration for both schemes."""
        clock = meters.Clock(self.device)
        for scheme in (self.ours, self.reference):
            clock.watch(scheme, "derivative", "derivative")
            clock.watch(scheme, "manual_backward" if scheme is self.ours else "backward", "backward")
            clock.watch(scheme, "update", "update")
        clock.watch(self.networks.autoencoder, "encode", "encode pictures")
        clock.watch(self.networks.text_encoder, "forward", "encode captions")
        clock.watch(self.networks.teacher, "forward", "teacher")
        clock.watch(self.ours.student.transformer, "forward", "student")
        clock.watch(self.ours.heads, "forward", "heads")
        found = {"reference": Counter[str](), "ours": Counter[str]()}
        for _ in range(count):
            for scheme, spent in found.items():
                whole = meters.seconds(partial(self.iteration, scheme, precision), self.device)
                parts = clock.take()
                spent.update(parts | {"rest": whole - sum(parts.values())})
        return {scheme: Counter({k: v / count for k, v in spent.items()}) for scheme, spent in found.items()}


def gradient_errors(shape: shapes.Shape, batch: int, device: str) -> dict[str, float]:
    """Returns |ours - reference| / |reference| of every trained network's gradient in float32. The heads stand in
    evaluation mode, where spectral norm does no power iteration: the reference does three a step, ours one."""
    bench = Bench(shape, batch, device, "32-true")
    bench.ours.heads.eval()
    bench.ours.update = lambda *_: {}
    bench.reference.update = lambda *_: None
    errors = {}
    for step, name in enumerate(("student", "heads")):
        network, found = getattr(bench.ours, name), []
        for scheme in ("reference", "ours"):
            bench.turn(scheme, "32-true", step)
            found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        theirs, ours = found
        errors[name] = ((ours - theirs).norm() / theirs.norm()).item()
    return errors


def compare(bench: Bench, precision: str, count: int, *, compiled: bool) -> Iterator[str]:
    """Yields the table of images/s, ratio and memory; a row is a scheme with its precision."""
    rows = {f"{scheme}, {precision}": (scheme, precision) for scheme in ("reference", "ours")}
    if precision == "32-true":
        rows["ours, bf16-mixed"] = ("ours", "bf16-mixed")
    if compiled:
        rows[f"ours, {precision}, compiled"] = ("compiled", precision)
    steps = {row: partial(bench.iteration, *how) for row, how in rows.items()}
    found = meters.medians(steps, count, bench.device)
    first = next(iter(found.values()))
    yield "| scheme | ms / iteration | images / s | ratio | peak MiB |\n|---|---|---|---|---|\n"
    for row, s in found.items():
        peak = meters.peak_bytes(steps[row], bench.device) / 2**20
        yield f"| {row} | {1e3 * s:.0f} | {2 * bench.size / s:.1f} | {first / s:.2f} | {peak:.0f} |\n"


def parts(bench: Bench, precision: str, count: int) -> Iterator[str]:
    """Yields the table of milliseconds per part."""
    found = bench.breakdown(precision, count // 4 + 1)
    yield f"\n| part, {precision} | reference ms | ours ms |\n|---|---|---|\n"
    for part in found["reference"]:
        yield f"| {part} | {1e3 * found['reference'][part]:.0f} | {1e3 * found['ours'][part]:.0f} |\n"


def roofline(bench: Bench, precision: str, count: int) -> Iterator[str]:
    """Yields how much of the machine's measured peak our iteration uses, and what memory traffic allows."""
    step = partial(bench.iteration, "ours", precision)
    s = meters.medians({"ours": step}, count, bench.device)["ours"]
    flops, moved = meters.work(step)
    peak, bandwidth = meters.roof(bench.device, torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    allowed = min(peak, flops / moved * bandwidth)
    yield f"\n{flops / 1e9 / 2 / bench.size:.2f} GFLOP an image, {flops / moved:.1f} FLOP a byte; this device: "
    yield f"{peak / 1e9:.0f} GFLOP/s in {precision}, {bandwidth / 1e9:.1f} GB/s\n"
    yield f"model-FLOP utilisation {flops / s / peak:.0%}; roof of unfused traffic {allowed / peak:.0%} of the peak\n"


def sweep(shape: shapes.Shape, device: str, precision: str, largest: int, count: int) -> Iterator[str]:
    """Yields images/s of both schemes for batches of 1, 2, 4, ... up to what fits, with and without activation
    checkpointing."""
    yield "\n| scheme | checkpointing | batch | images / s | peak of a step, MiB | state between steps, MiB |\n"
    yield "|---|---|---|---|---|---|\n"
    for checkpointing in (False, True):
        for scheme in ("reference", "ours"):
            batch = 1
            while batch <= largest:
                found = row(shape, batch, device, precision, scheme, count, checkpointing=checkpointing)
                meters.free(device)
                if not found:
                    break
                yield f"| {scheme} | {checkpointing} | {batch} | {found} |\n"
                batch *= 2


def row(
    shape: shapes.Shape, batch: int, device: str, precision: str, scheme: str, count: int, *, checkpointing: bool
) -> str:
    """Returns images/s, peak and state of one scheme at one batch, '' where they do not fit."""
    try:
        bench = Bench(shape, batch, device, precision, checkpointing)
        step = partial(bench.iteration, scheme, precision)
        s, peak = meters.medians({scheme: step}, count, device)[scheme], meters.peak_bytes(step, device)
    except meters.OUT_OF_MEMORY:
        return ""
    return f"{2 * batch / s:.1f} | {peak / 2**20:.0f} | {bench.state_bytes(scheme) / 2**20:.1f}"


def arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(shapes.SHAPES), default="demo")
    parser.add_argument("--batch", type=int, help="pictures a step; the profile's where not given, 8 if published")
    parser.add_argument("--steps", type=int, default=20, help="iterations a median is of")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], help="of both schemes")
    parser.add_argument("--compile", action="store_true", help="also our step with compiled blocks")
    parser.add_argument("--check", action="store_true", help="compare gradients instead of speed")
    parser.add_argument("--sweep", action="store_true", help="also sweep the batch size")
    parser.add_argument("--largest", type=int, default=1024, help="largest batch of the sweep")
    return parser.parse_args()


def main() -> None:
    """Prints what the command line asks for."""
    given = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, published = shapes.SHAPES[given.size](), given.size.endswith("B")
    batch = given.batch or (8 if published else shape.params.global_batch)
    precision = given.precision or ("bf16-mixed" if published else "32-true")
    out = sys.stdout.write
    out(f"{given.size}, batch {batch}, {device}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    if given.check:
        for name, error in gradient_errors(shape, batch, device).items():
            out(f"gradient of {name}: ours differs from the reference by {error:.1e}\n")
        return
    bench = Bench(shape, batch, device, precision)
    for table in (partial(compare, compiled=given.compile), roofline, parts):
        for line in table(bench, precision, given.steps):
            out(line)
    del bench
    if given.sweep:
        for line in sweep(shape, device, precision, given.largest, given.steps // 4 + 1):
            out(line)


if __name__ == "__main__":
    main()
