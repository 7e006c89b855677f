"""DVC's own files after a kill: what is cut goes, what is whole stays, and a `dvc` at work is not disturbed."""

import json
import subprocess
import sys

import pytest

from sana_sprint import recovery

ENTRY = """schema: '2.0'
stages:
  first:
    cmd: touch one
    deps:
    - path: zero
      hash: md5
      md5: 68b329da9893e34099c7d8ad5cb9c940
      size: 1
"""


@pytest.fixture
def root(tmp_path):
    """A repository of DVC with a whole list of readers and writers and a whole lock file."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {}, "read": {"zero": [{"pid": 1, "cmd": "repro"}]}}))
    (tmp_path / "dvc.lock").write_text(ENTRY)
    return tmp_path


def test_whole_files_are_left_alone(root):
    before = (root / ".dvc/tmp/rwlock").read_bytes()
    assert recovery.recover(root) == []
    assert (root / ".dvc/tmp/rwlock").read_bytes() == before
    assert (root / "dvc.lock").read_text() == ENTRY


@pytest.mark.parametrize("left", [0, 1, 20])
def test_a_cut_list_of_readers_and_writers_is_removed(root, left):
    path = root / ".dvc/tmp/rwlock"
    path.write_bytes(path.read_bytes()[:left])
    assert recovery.recover(root) == [".dvc/tmp/rwlock: was cut, removed"]
    assert not path.exists()


@pytest.mark.parametrize("left", ["", "sch", ENTRY[:-40], ENTRY[:-4], ENTRY[: ENTRY.index("md5") + 1]])
def test_a_cut_lock_file_is_moved_aside(root, left):
    (root / "dvc.lock").write_text(left)
    assert recovery.recover(root) == ["dvc.lock: was cut, moved to .dvc/tmp/dvc.lock-cut"]
    assert not (root / "dvc.lock").exists()
    assert (root / ".dvc/tmp/dvc.lock-cut").read_text() == left


def test_the_lock_file_of_the_experiments_is_looked_at_too(root):
    path = root / "pipelines/ablation/dvc.lock"
    path.parent.mkdir(parents=True)
    path.write_text(ENTRY[:30])
    told = "pipelines/ablation/dvc.lock: was cut, moved to .dvc/tmp/pipelines-ablation-dvc.lock-cut"
    assert recovery.recover(root) == [told]


@pytest.mark.parametrize(("guard", "cut"), [("rwlock.lock", ".dvc/tmp/rwlock"), ("lock", "dvc.lock")])
def test_a_file_that_dvc_is_writing_is_not_touched(root, guard, cut):
    (root / cut).write_text("")
    code = (
        "import sys; from dvc.lock import make_lock; held = make_lock(sys.argv[1]); held.lock(); "
        "print(flush=True); input()"
    )
    words = [sys.executable, "-c", code, str(root / ".dvc/tmp" / guard)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(ValueError, match="a `dvc` is at work here"):
            recovery.recover(root)
        assert (root / cut).read_text() == ""
        holder.communicate(b"\n")
    assert len(recovery.recover(root)) == 1
