"""A training that breaks says so in one line; its curves survive a resume without a doubled step."""

import errno
import json
import os

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from sana_sprint.training import callbacks, optim


class Line(L.LightningModule):
    def __init__(self, breaks_at):
        super().__init__()
        self.layer, self.breaks_at = torch.nn.Linear(1, 1), breaks_at

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, index):
        loss = self.layer(torch.ones(1, 1)).square().sum()
        loss = loss * (float("nan") if batch["step"] == self.breaks_at else 1.0)
        self.log("loss", loss.detach())
        return loss


def run(steps, extra, breaks_at=-1):
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=extra,
    )  # fmt: skip
    trainer.fit(Line(breaks_at), DataLoader([{"step": s} for s in steps], batch_size=None))


def test_a_value_that_is_not_finite_stops_the_run_and_is_named():
    with pytest.raises(ValueError, match=r"step 4: loss is nan; lower the learning rate"):
        run(range(10), [callbacks.StopOnNonFinite()], breaks_at=3)


def test_curves_go_on_after_a_resume_without_a_doubled_step(tmp_path):
    path = tmp_path / "curves.json"
    run(range(6), [callbacks.Curves(path, None, 2)])
    run(range(4, 10), [callbacks.Curves(path, None, 2, start=4)])
    assert [step for step, _ in json.loads(path.read_text())["loss"]] == [2, 4, 6, 8, 10]


def test_progress_says_step_rate_and_time_left(capsys):
    run(range(5), [callbacks.Progress("teacher", 5, every_s=0.0)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher")]
    assert len(lines) == 5
    assert lines[-1].startswith("teacher  5/5  loss ")
    assert lines[-1].endswith("0m00s left")


def test_metrics_of_one_network_are_shown_together():
    values = {"student/scm": -5.2345, "student/grad_norm": 12.0, "heads/grad_norm": 0.5, "images_per_s": 48.12}
    assert callbacks.shown(values) == "student: scm -5.23, grad_norm 12  heads: grad_norm 0.5  images_per_s 48.1"
    assert callbacks.shown({"loss": 0.25}) == "loss 0.25"


@pytest.mark.parametrize(
    ("number", "what"), [(errno.ENOSPC, "free space"), (errno.EDQUOT, "free space"), (errno.EACCES, "mend that")]
)
def test_only_what_lacks_room_asks_for_some(capsys, number, what):
    with callbacks.despite_full_disk("checkpoint"):
        raise OSError(number, os.strerror(number))
    assert capsys.readouterr().err.endswith(f"; {what}, the run goes on\n")


@pytest.mark.parametrize(
    ("seconds", "words"), [(534.0, "8m54s"), (119.9, "2m00s"), (59.7, "1m00s"), (29.6, "0m30s"), (0.0, "0m00s")]
)
def test_time_left_is_told_in_whole_minutes_and_seconds(seconds, words):
    assert callbacks.clock(seconds) == words


@pytest.mark.parametrize(("step", "scale"), [(0, 0.1), (4, 0.5), (9, 1.0), (49, 1.0), (50, 1.0), (75, 0.5), (99, 0.02)])
def test_the_learning_rate_warms_up_stays_and_falls(step, scale):
    assert optim.lr_scale(step, 100, 10, 0.5) == pytest.approx(scale)
