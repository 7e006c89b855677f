"""Bad input meets the real stage scripts: one line that names it and the remedy, nothing half-written, and the
next run with the fault mended succeeds.
"""

import contextlib
import io
import json
import os
import struct
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.work import Work, small_files

pytestmark = pytest.mark.e2e


def png(seed: int, side: int = 20) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG of a few bytes that declares side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 64)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """An MLflow store with its tables made once: making them takes seconds."""
    from sana_sprint.registry import store

    place = tmp_path_factory.mktemp("tables") / "mlflow.db"
    store.client(f"sqlite:///{place}")
    return place


@pytest.fixture
def work(tmp_path, tables):
    """A working folder with eight pictures and captions, which the stages take as they are."""
    made = Work.make(tmp_path / "a work", tables)
    for index in range(8):
        (made.source / f"{index}.png").write_bytes(png(index))
        (made.source / f"{index}.txt").write_text(f"picture number {index}\n")
    return made


def lines(source, column="text"):
    for sidecar in source.glob("*.txt"):
        sidecar.unlink()
    rows = [json.dumps({"file_name": f"{i}.png", column: f"picture number {i}"}) for i in range(8)]
    (source / "metadata.jsonl").write_text("\n".join(rows) + "\n")


WRONG = [
    ({"sed": 1}, ("prepare.sed", "Extra inputs are not permitted")),
    ({"resolution_px": -3}, ("prepare.resolution_px", "greater than 0", "-3")),
    ({"seed": "zero"}, ("prepare.seed", "valid integer", "'zero'")),
]


def test_a_wrong_params_key_or_number(work):
    right = work.sections()
    for change, parts in WRONG:
        work.profile(right | {"prepare": right["prepare"] | change})
        work.refused("prepare", "profiles/own.yaml", *parts)
        assert not work.has_raw()
    work.profile(right)
    work.succeeds("prepare")


def test_a_missing_key_and_an_unknown_section(work):
    right = work.sections()
    work.profile({k: v for k, v in right.items() if k != "encode"} | {"encoder": right["encode"]})
    work.refused("encode", "unknown section ['encoder']", "sections are")
    work.profile(right | {"prepare": {k: v for k, v in right["prepare"].items() if k != "seed"}})
    work.refused("prepare", "prepare.seed: missing")
    work.profile(right)
    work.succeeds("prepare")


def shard(path, keys):
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for name, data in ((f"{key}.png", png(key)), (f"{key}.txt", b"a picture")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def test_a_truncated_tar(work):
    sections = work.sections()
    sections["prepare"]["source"]["kind"] = "webdataset"
    work.profile(sections)
    place = work.source / "00000.tar"
    shard(place, range(8))
    whole = place.read_bytes()
    place.write_bytes(whole[:5000])
    work.refused("prepare", "00000.tar: truncated or broken tar after member", "copy it again or delete it")
    assert not work.has_raw()
    place.write_bytes(whole)
    work.succeeds("prepare")


def test_corrupt_and_enormous_pictures_are_left_out_by_name_and_stop_validate(work):
    (work.source / "3.png").write_bytes(png(3)[:200])
    (work.source / "6.png").write_bytes(huge_png(100_000))
    work.succeeds("prepare")
    left_out = [json.loads(line) for line in (work.root / "data/raw/quarantine.jsonl").read_text().splitlines()]
    assert [fault["name"] for fault in left_out] == ["3.png", "6.png"]
    assert "corrupt or truncated picture" in left_out[0]["reason"]
    assert "declares 100,000 x 100,000 pixels, more than prepare.max_source_pixels" in left_out[1]["reason"]
    work.refused("validate", "3.png", "6.png", "quarantine", "mend the source")
    for index in (3, 6):
        (work.source / f"{index}.png").write_bytes(png(index))
    work.succeeds("prepare")
    work.succeeds("validate")


def test_an_empty_caption(work):
    (work.source / "5.txt").write_text(" \n")
    work.refused("prepare", "5.txt: the caption is empty; write one or delete the picture")
    assert not work.has_raw()
    (work.source / "5.txt").write_text("a picture\n")
    work.succeeds("prepare")


def test_a_missing_caption_column(work):
    lines(work.source, "caption")
    work.refused("prepare", "metadata.jsonl line 1: the column 'text' is missing", "each line needs")
    lines(work.source)
    work.succeeds("prepare")


def test_two_pictures_of_one_key(work):
    (work.source / "0.jpg").write_bytes((work.source / "0.png").read_bytes())
    work.refused("prepare", "0.jpg and 0.png have one key '0'; rename one of them")
    (work.source / "0.jpg").rename(work.source / "zero.jpg")
    (work.source / "zero.txt").write_text("a picture\n")
    work.succeeds("prepare")


def test_a_folder_without_pictures(work):
    kept = {path: path.read_bytes() for path in work.source.iterdir()}
    for path in kept:
        path.unlink()
    work.refused("prepare", "data/source/own: holds no pictures", "put your pictures and metadata.jsonl there")
    work.source.rmdir()
    work.refused("prepare", "data/source/own: no such folder", "put your pictures")
    work.source.mkdir()
    for path, data in kept.items():
        path.write_bytes(data)
    work.succeeds("prepare")


def test_an_unreachable_tracking_server(work):
    address = "http://127.0.0.1:9"
    away = {"MLFLOW_TRACKING_URI": address, "SANA_SPRINT_TRACKING_WAIT_S": "0"}
    work.refused("prepare", f"tracking server {address} cannot be used", "make ui", **away)
    assert not work.has_raw()
    work.succeeds("prepare")


def test_a_bad_run_leaves_the_last_good_output_alone(work):
    work.succeeds("prepare")
    before = (work.root / "data/raw/manifest.parquet").read_bytes()
    (work.source / "5.txt").write_text("")
    work.refused("prepare", "5.txt")
    assert (work.root / "data/raw/manifest.parquet").read_bytes() == before


def test_evaluate_without_what_it_reads(work):
    schedule = work.root / "data/models/schedule/small.json"
    work.refused("evaluate small", f"{schedule.relative_to(work.root)}: no lists of times", "run `dvc repro schedule`")
    schedule.parent.mkdir(parents=True)
    times = {"1": [1.5, 0.0], "2": [1.5, 1.0, 0.0], "3": [1.5, 1.0, 0.5, 0.0], "4": [1.5, 1.2, 1.0, 0.5, 0.0]}
    schedule.write_text(json.dumps({"times": times})[:-9])
    work.refused("evaluate small", "data/models/schedule/small.json: no lists of times", "not valid JSON")
    schedule.write_text(json.dumps({"times": times}))
    work.refused("evaluate small", "data/raw/manifest.parquet: no such file; run `dvc repro prepare` to make it")
    assert not (work.root / "data/metrics").exists()


def many(work):
    for index in range(100, 160):
        (work.source / f"{index}.png").write_bytes(png(index))
        (work.source / f"{index}.txt").write_text(f"picture number {index}\n")


@contextlib.contextmanager
def tiny_disk(place):
    """A file system of 64 KiB at `place`."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def may_mount():
    """Whether this process may mount a file system: root may, outside most containers."""
    if os.geteuid():
        return False
    try:
        with tempfile.TemporaryDirectory() as folder, tiny_disk(Path(folder) / "disk"):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


def small_disk(work):
    """Lets prepare meet a disk of 64 KiB."""
    many(work)
    kept = work.source.rename(work.root / "pictures")
    (work.root / "data/source").rmdir()
    (work.root / "data").rmdir()
    with tiny_disk(work.root / "data"):
        (work.root / "data/source").mkdir()
        work.source.symlink_to(kept)
        work.refused("prepare", "disk full while writing", "free space and run `dvc repro` again")
        assert not work.has_raw()
    work.source.parent.mkdir()
    kept.rename(work.source)


def file_limit(work):
    """Lets prepare meet a limit on the size of a file, as a quota does: the store fits, the pictures do not."""
    sections = work.sections()
    sections["prepare"]["resolution_px"] = 512
    work.profile(sections)
    limit = small_files(2 * work.store.stat().st_size)
    work.refused("prepare", "disk full while writing", "free space and run `dvc repro` again", before=limit)
    assert not work.has_raw()


@pytest.mark.parametrize("meet", [file_limit, *([small_disk] if may_mount() else [])])
def test_a_full_disk(work, meet):
    meet(work)
    work.succeeds("prepare")
