"""A teacher draws a corpus for bare prompts, which source `folder` reads as it reads a user's own pictures."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sana_sprint import config
from sana_sprint.data import manifest, prepare
from sana_sprint.evaluation import drawing, generate, synthesis
from sana_sprint.evaluation.protocol import Prompt
from tests.evaluation.conftest import SAMPLING
from tests.registry.conftest import repository, server
from tests.test_cli import parsed, refused

__all__ = ["repository", "server"]
PROMPTS = ["a red circle", "two blue squares", "a green triangle"]
HOW = SAMPLING.model_copy(update={"teacher_steps": 3})


@pytest.fixture
def asked(tmp_path, teacher_folder):
    (tmp_path / "prompts.txt").write_text("  a red   circle\n\ntwo blue squares\r\na green triangle\n")
    return synthesis.Asked(tmp_path / "prompts.txt", teacher_folder, 2, 5, "float32")


def test_the_pictures_are_the_guided_teachers_and_prepare_reads_them(asked, tmp_path, teacher_folder):
    folder = tmp_path / "source"
    assert synthesis.run(asked, HOW, folder) == (6, 6)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    captions = [prompt for prompt in PROMPTS for _ in range(2)]
    assert lines == [{"file_name": f"{n:06d}.png", "text": caption} for n, caption in enumerate(captions)]
    loaded = generate.load(teacher_folder, HOW, 1.0)
    noise = generate.noises(loaded, [Prompt(n, "", c, "", "", {}) for n, c in enumerate(captions)], 1, 5)
    expected = loaded.teacher(captions, noise)
    assert all(np.array_equal(Image.open(folder / f"{n:06d}.png"), picture) for n, picture in enumerate(expected))
    assert not np.array_equal(expected[0], expected[1])
    params = config.Prepare(
        seed=0,
        resolution_px=64,
        images_per_shard=4,
        max_source_pixels=10**6,
        source=config.Folder(kind="folder", eval_share=0.34),
    )
    prepare.run(params, folder, tmp_path / "raw")
    rows = [row for split in ("train", "eval") for row in manifest.read(tmp_path / "raw", split)]
    assert sorted(row.caption for row in rows) == sorted(captions)


def test_a_run_that_was_cut_short_draws_the_missing_ones_alone(asked, tmp_path, monkeypatch):
    folder = tmp_path / "source"
    synthesis.run(asked, HOW, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "metadata.jsonl").unlink()
    (folder / "000003.png").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert synthesis.run(asked, HOW, folder) == (1, 6)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}.items()
    monkeypatch.setattr(drawing, "drawn", lambda call: pytest.fail("nothing is missing"))
    assert synthesis.run(asked, HOW, folder) == (0, 6)


@pytest.mark.parametrize("change", ["prompts", "steps", "seed"])
def test_a_folder_of_other_pictures_is_refused(asked, change, tmp_path):
    folder = tmp_path / "source"
    synthesis.run(asked, HOW, folder)
    how = HOW
    if change == "prompts":
        asked.prompts.write_text("a blue circle\n")
    elif change == "steps":
        how = HOW.model_copy(update={"teacher_steps": 2})
    else:
        asked = synthesis.Asked(asked.prompts, asked.teacher, 2, 6, "float32")
    with pytest.raises(ValueError, match=r"drawn\.json: the pictures there were drawn .* name an empty folder"):
        synthesis.run(asked, how, folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"prompts\.txt: no such file; write your prompts there, one a line"),
        (b" \n\n", r"prompts\.txt: holds no prompt"),
        (b"a cat\na dog\na  cat \n", r"prompts\.txt line 3: the prompt of line 1 again; .*--per-prompt"),
        (b"a caf\xe9\n", r"prompts\.txt: not UTF-8 text \(byte 5\)"),
    ],
)
def test_prompts_that_cannot_be_read_are_told_of_before_anything_is_written(asked, content, told, tmp_path):
    if content is None:
        asked.prompts.unlink()
    else:
        asked.prompts.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        synthesis.run(asked, HOW, tmp_path / "source")
    assert not (tmp_path / "source").exists()


def test_a_student_is_no_teacher(asked, sprint_folder, tmp_path):
    student = synthesis.Asked(asked.prompts, sprint_folder, 1, 0, "float32")
    with pytest.raises(ValueError, match=r"transformer/config\.json: of a student; name a teacher's folder"):
        synthesis.run(student, HOW, tmp_path / "source")


def test_the_command_draws_by_the_profiles_sampling_and_refuses_code_in_the_folder(asked, repository, tmp_path):
    words = [str(asked.prompts), "source", "--teacher"]
    told = parsed("synthesize", *words, str(asked.teacher))
    assert told == {"folder": "source", "pictures": 3, "drawn": 3, "teacher": str(asked.teacher)}
    assert Image.open(repository / "source/000000.png").size == (64, 64)
    shutil.copytree(asked.teacher, tmp_path / "teacher")
    (tmp_path / "teacher/unet.py").write_text("print()\n")
    assert "unet.py" in refused("synthesize", *words, str(tmp_path / "teacher"))
