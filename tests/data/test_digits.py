import json

import numpy as np
import pytest
from PIL import Image
from samples import params
from sklearn.datasets import load_digits

from sana_sprint import config, storage
from sana_sprint.data import digits, prepare


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "digits"
    assert digits.write(folder) == 1797
    return folder


def test_each_scan_stands_under_its_caption(written):
    scans = load_digits()
    lines = [json.loads(line) for line in (written / "metadata.jsonl").read_text().splitlines()]
    for index in range(0, 1797, 97):
        word = digits.WORDS[scans.target[index]]
        assert lines[index] == {"file_name": f"{index:04d}.png", "text": f"a handwritten {word}"}
        with Image.open(written / lines[index]["file_name"]) as image:
            assert (image.size, image.mode) == ((32, 32), "L")
            ink = 255 - np.asarray(image.resize((8, 8), Image.Resampling.BOX)).astype(float)
        assert np.corrcoef(ink.ravel(), scans.images[index].ravel())[0, 1] > 0.97


def test_writing_again_touches_nothing(written):
    stamp = (written / "0000.png").stat().st_mtime_ns
    digits.write(written)
    assert (written / "0000.png").stat().st_mtime_ns == stamp


def test_a_half_deleted_folder_is_made_whole_with_equal_bytes(written):
    before = storage.digest(written)
    (written / "0007.png").unlink()
    digits.write(written)
    assert storage.digest(written) == before


def test_a_folder_with_somebody_elses_files_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"holds holiday.jpg, which is none of the digits; move it away"):
        digits.write(tmp_path)
    assert (tmp_path / "holiday.jpg").exists()


def test_the_folder_source_reads_them(written, tmp_path):
    source = config.Folder(kind="folder", eval_share=0.2)
    summary = prepare.run(params(source, resolution_px=32, images_per_shard=1000), written, tmp_path / "raw")
    assert summary["train"] + summary["eval"] == 1797
    assert (summary["captions"], summary["quarantined"]) == (10, 0)
