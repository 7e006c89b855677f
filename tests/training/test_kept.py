"""A flow training that was killed, or asked to end, goes on from its state to the weights of an undisturbed one."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import lightning as L
import pytest
import tiny
import torch
from safetensors.torch import load_file

from sana_sprint import config, storage
from sana_sprint.data.loader import Latents
from sana_sprint.models.networks import Text
from sana_sprint.training import callbacks, checkpoints, draws, flow, kept, shrink
from tests.training.test_job import limited_files
from tests.training.test_shrink_convert import SMOKE, data, prune_params, uncut  # noqa: F401  fixtures

STEPS = 14


class Disturb(L.Callback):
    """Does something in the middle of a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            self.what()


def crash():
    raise KeyboardInterrupt


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    signal.raise_signal(signal.SIGINT)  # whose handler has run when it returns, so that two are two


def interrupt_twice():
    interrupt()
    interrupt()


@pytest.fixture
def teacher_params():
    params = config.parse(config.Teacher, "teacher", SMOKE)
    fast = {"flow": params.flow.model_copy(update={"steps": STEPS, "batch": 8}), "checkpoint_every": 4}
    return params.model_copy(update=fast)


class Training:
    """The same short fine-tune again and again, in one place."""

    def __init__(self, root, params, latents):
        self.root, self.params, self.latents, self.data = root, params, latents, Latents(latents, "train")
        self.keep = None

    def run(self, what=None, at=0, params=None):
        """Trains as far as it comes; returns the digest of trained weights and EMA, and the curves."""
        params = params or self.params
        key = storage.digest_of(params.model_dump())
        self.keep = kept.Kept(self.root / "checkpoints", key, params)
        watch = callbacks.Curves(self.keep.curves, None, 2, self.keep.start)
        module = flow.FlowTraining(tiny.transformer().train(), Text(*self.data.null), params.flow, params.seed)
        batches = draws.Batches(self.data, params.flow.batch, params.seed, STEPS, draws.Share(0, 1))
        extra = [watch] + ([Disturb(at - self.keep.start, what)] if what else [])
        flow.fit(module, batches, STEPS, extra, "teacher", kept=self.keep)
        self.keep.end(self.root / "curves.json")
        weights = {name: weight.tolist() for name, weight in module.state_dict().items()}
        return storage.digest_of(weights), storage.read_json(self.root / "curves.json")

    def steps(self):
        return sorted(int(path.name[-7:]) for path in self.keep.folder.glob("step-*"))


@pytest.fixture
def training(tmp_path, teacher_params, latents_folder):
    return Training(tmp_path / "one", teacher_params, latents_folder)


@pytest.fixture
def straight(tmp_path, teacher_params, latents_folder):
    """What a run gives that nothing disturbs."""
    return Training(tmp_path / "straight", teacher_params, latents_folder).run()


def test_a_run_that_broke_off_goes_on_bit_for_bit(training, straight, capsys):
    with pytest.raises(SystemExit):  # Lightning's own answer to an interrupt
        training.run(crash, at=9)
    assert training.steps() == [4, 8]
    assert training.run() == straight
    said = capsys.readouterr()
    assert "going on from" in said.out
    assert "the code of this training" not in said.err
    assert not training.keep.folder.exists()


def test_one_that_goes_on_by_other_code_says_so(training, capsys):
    with pytest.raises(SystemExit):
        training.run(crash, at=9)
    state = training.keep.folder / "step-0000008" / checkpoints.STATE
    storage.write_json(state, storage.read_json(state) | {"code": "of before"})
    training.run()
    assert "step-0000008: the code of this training was another one then" in capsys.readouterr().err


@pytest.mark.parametrize("ask", [sigterm, interrupt])
def test_one_that_is_asked_to_end_saves_its_whole_step_first(training, straight, capsys, ask):
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as ended:
        training.run(ask, at=5)
    assert ended.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)] == before
    assert training.steps() == [4, 6]
    assert "asked to stop: writing a checkpoint first" in capsys.readouterr().err
    assert training.run() == straight


def test_a_second_interrupt_ends_in_the_middle_of_a_step(training, straight, capsys):
    with pytest.raises(SystemExit):  # Lightning's own answer to an interrupt
        training.run(interrupt_twice, at=5)
    assert training.steps() == [4]
    assert "writing a checkpoint" not in capsys.readouterr().err
    assert training.run() == straight


def test_one_that_is_asked_to_end_in_its_last_step_has_nothing_left_to_train(training, straight):
    with pytest.raises(SystemExit):
        training.run(sigterm, at=STEPS - 1)
    assert training.steps()[-1] == STEPS
    assert training.run() == straight


def test_a_broken_newest_checkpoint_does_not_push_out_the_new_ones(training, teacher_params):
    one = teacher_params.model_copy(update={"keep_checkpoints": 1})
    with pytest.raises(SystemExit):
        training.run(crash, at=9, params=one)
    os.truncate(training.keep.folder / "step-0000008/averaged.safetensors", 1)
    (training.keep.folder / ".unfinished-step-0000010-abcdefgh").mkdir()  # of a kill in the middle of a save
    with pytest.raises(SystemExit):
        training.run(crash, at=6, params=one)
    assert sorted(path.name for path in training.keep.folder.iterdir()) == ["curves.json", "step-0000004"]


def test_a_run_goes_on_with_the_threads_that_it_began_with(training, monkeypatch):
    monkeypatch.delenv("SANA_SPRINT_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(SystemExit):
            training.run(crash, at=5)
        torch.set_num_threads(1)
        with pytest.raises(SystemExit):
            training.run(crash, at=6)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("SANA_SPRINT_THREADS", "1")
        torch.set_num_threads(1)
        training.run()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_what_is_kept_serves_the_same_inputs_and_params_alone(tmp_path, monkeypatch, teacher_params):
    monkeypatch.chdir(tmp_path)
    made_of = tmp_path / "latents"
    made_of.write_text("one")

    def key(name="teacher", **changes):
        return kept.of(name, [made_of], teacher_params.model_copy(update=changes)).key

    first = key()
    assert key(checkpoint_every=1, keep_checkpoints=5) == first
    assert first not in (key("prune/small"), key(seed=1))
    made_of.write_text("two")
    assert key() != first


def test_a_second_training_waits_for_the_one_that_still_writes_there(tmp_path, teacher_params, capsys):
    first = kept.Kept(tmp_path / "teacher", "key", teacher_params)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(kept.Kept, tmp_path / "teacher", "key", teacher_params)
        try:
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            storage.write_json(first.curves, {})
            first.end(tmp_path / "curves.json")
            second.result(timeout=60)
        finally:
            first.held.close()  # or the pool would wait for ever for the second
    assert "teacher: another training still writes here; waiting for its end" in capsys.readouterr().err


def test_a_cut_checkpoint_is_named_and_the_one_before_is_taken(training, straight, capsys):
    with pytest.raises(SystemExit):
        training.run(crash, at=9)
    weights = training.keep.folder / "step-0000008/averaged.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert training.run() == straight
    told = capsys.readouterr()
    assert "step-0000008: half-written checkpoint (averaged.safetensors does not match its digest); skipped" in told.err
    assert "step-0000004" in told.out


def test_a_run_of_other_params_starts_from_zero(training, teacher_params):
    with pytest.raises(SystemExit):
        training.run(crash, at=9)
    other = teacher_params.model_copy(update={"seed": 1})
    mine = training.run(params=other)
    assert mine == Training(training.root.parent / "two", other, training.latents).run()


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(training, straight, capsys):
    """Files above 20 kB cannot be written, as on a full disk: curves can, weights cannot."""
    with limited_files() as limit:
        limit(20_000)
        assert training.run() == straight
    assert "warning: no checkpoint of step 4: " in capsys.readouterr().err


def test_healing_goes_on_bit_for_bit_too(tmp_path, prune_params, data, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    teacher = tmp_path / "teacher"
    networks_of = tiny.transformer()
    networks_of.save_pretrained(teacher / "transformer")
    params = prune_params.model_copy(
        update={"healing": prune_params.healing.model_copy(update={"steps": STEPS, "batch": 8}), "checkpoint_every": 4}
    )

    def heal(*extra):
        keep = kept.of("prune/small", [teacher], params)
        watch = callbacks.Curves(keep.curves, None, 2, keep.start)
        student = uncut(tiny.transformer())
        healed = shrink.heal(params, "small", student, teacher, data, [watch, *extra], keep)
        keep.end(tmp_path / "curves.json")
        return storage.digest_of({k: v.tolist() for k, v in healed.state_dict().items()})

    straight = heal()
    with pytest.raises(SystemExit):
        heal(Disturb(10, crash))
    assert (tmp_path / "data/checkpoints/prune/small/step-0000008").is_dir()
    assert heal() == straight


def test_what_is_kept_is_safetensors_and_what_torch_reads_without_running_it(training):
    with pytest.raises(SystemExit):
        training.run(crash, at=9)
    place = shutil.copytree(training.keep.folder / "step-0000008", training.root / "copy")
    assert {path.name for path in place.iterdir()} == {
        "transformer.safetensors", "averaged.safetensors", "optimisers.pt", "checkpoint.json",
    }  # fmt: skip
    assert load_file(place / "averaged.safetensors").keys() == load_file(place / "transformer.safetensors").keys()
    (moments,) = torch.load(place / "optimisers.pt", weights_only=True)
    assert moments["state"]
