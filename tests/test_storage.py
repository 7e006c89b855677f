"""Writes are whole or absent, whatever ends them, and digests see content and names alone."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sana_sprint import storage

SOURCE = Path(storage.__file__).parents[1]


def child(body: str, folder: Path, **options) -> subprocess.Popen:
    """Starts Python on a script that finds the package and works in `folder`."""
    script = "from pathlib import Path\nfrom sana_sprint import storage\n" + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def killed_while_writing(body: str, folder: Path) -> None:
    """Runs a script until it has made the file `reached`, then kills it with SIGKILL."""
    process = child(body, folder)
    deadline = time.monotonic() + 60
    while not (folder / "reached").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (folder / "reached").unlink()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_folder(path: Path, content: str = "new") -> None:
    with storage.whole_folder(path) as unfinished:
        (unfinished / "deep").mkdir()
        (unfinished / "deep" / "file.txt").write_text(content)


# --- whole or absent ------------------------------------------------------------------------------


def test_a_finished_folder_replaces_the_older_one_entirely(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "out", "old")
    (tmp_path / "a" / "out" / "extra").write_text("old")
    write_folder(tmp_path / "a" / "out")
    assert names(tmp_path / "a") == ["out"]
    assert names(tmp_path / "a" / "out") == ["deep"]
    assert (tmp_path / "a" / "out" / "deep" / "file.txt").read_text() == "new"


def test_nothing_stands_at_the_place_while_it_is_written(tmp_path: Path) -> None:
    with storage.whole_folder(tmp_path / "out") as unfinished:
        assert not (tmp_path / "out").exists()
        assert unfinished.parent == tmp_path, "a rename must not cross file systems"
    with storage.whole_file(tmp_path / "file") as half:
        half.write_text("x")
        assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_older_content_and_no_half(tmp_path: Path, error: type[BaseException]) -> None:
    write_folder(tmp_path / "out", "old")
    storage.write_text(tmp_path / "file", "old")

    def fail_in_a_folder() -> None:
        with storage.whole_folder(tmp_path / "out") as unfinished:
            (unfinished / "half").write_text("half")
            raise error

    def fail_in_a_file() -> None:
        with storage.whole_file(tmp_path / "file") as half:
            half.write_text("half")
            raise error

    with pytest.raises(error):
        fail_in_a_folder()
    with pytest.raises(error):
        fail_in_a_file()
    assert names(tmp_path) == ["file", "out"]
    assert names(tmp_path / "out") == ["deep"]
    assert (tmp_path / "file").read_text() == "old"


def test_sigkill_leaves_the_older_content_and_the_next_run_clears_up(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "old")
    body = """
        import time
        with storage.whole_folder(Path("out")) as folder:
            (folder / "half").write_text("half")
            Path("reached").touch()
            time.sleep(60)
    """
    killed_while_writing(body, tmp_path)
    assert (tmp_path / "out" / "deep" / "file.txt").read_text() == "old"
    assert len(names(tmp_path)) == 2, "the killed process left its unfinished folder"
    write_folder(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "deep" / "file.txt").read_text() == "new"


def test_sigkill_at_any_file_operation_never_leaves_half_a_folder(tmp_path: Path) -> None:
    body = """
        import os, signal, sys
        operations = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
        left = KILL_AT
        def kill(event, arguments):
            global left
            if event not in operations:
                return
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        with storage.whole_folder(Path("out")) as folder:
            for i in range(3):
                (folder / f"{i}").write_text("new")
            sys.addaudithook(kill)
    """
    seen = set()
    for operation in range(30):
        with storage.whole_folder(tmp_path / "out") as folder:
            for i in range(3):
                (folder / f"{i}").write_text("old")
        process = child(body.replace("KILL_AT", str(operation)), tmp_path)
        _, message = process.communicate(timeout=60)
        found = {p.name: p.read_text() for p in (tmp_path / "out").glob("*")}
        assert found in ({}, *({str(i): age for i in range(3)} for age in ("old", "new"))), operation
        assert process.returncode in (0, -signal.SIGKILL), message
        seen.add((process.returncode, found.get("0")))
        if process.returncode == 0:
            break
    assert seen == {(-signal.SIGKILL, "old"), (-signal.SIGKILL, None), (-signal.SIGKILL, "new"), (0, "new")}
    write_folder(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_sigkill_during_a_file_leaves_the_older_file_and_the_next_run_clears_up(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "file", "old")
    body = """
        import time
        with storage.whole_file(Path("file")) as half:
            half.write_text("half")
            Path("reached").touch()
            time.sleep(60)
    """
    killed_while_writing(body, tmp_path)
    assert (tmp_path / "file").read_text() == "old"
    storage.write_text(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "new"


def test_an_unfinished_folder_of_a_longer_name_is_left_alone(tmp_path: Path) -> None:
    with storage.whole_folder(tmp_path / "student-small") as other:
        (other / "weights").write_text("being written")
        write_folder(tmp_path / "student")
        assert (other / "weights").exists()
    assert names(tmp_path) == ["student", "student-small"]


def test_names_with_spaces_and_brackets_are_cleared_up_too(tmp_path: Path) -> None:
    place = tmp_path / "a folder" / "out [1]"
    stale = place.with_name(f"{storage.UNFINISHED}out [1]-abcdefgh")
    stale.mkdir(parents=True)
    write_folder(place)
    assert names(place.parent) == ["out [1]"]
    stale_file = place.parent / f"{storage.UNFINISHED}file [1]"
    stale_file.write_text("half")
    storage.write_text(place.parent / "file [1]", "new")
    assert names(place.parent) == ["file [1]", "out [1]"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_folder(cache / "folder", "cached")
    storage.write_text(cache / "file", "cached")
    for name in ("folder", "file"):
        (tmp_path / name).symlink_to(cache / name)
    write_folder(tmp_path / "folder")
    storage.write_text(tmp_path / "file", "new")
    assert (cache / "folder" / "deep" / "file.txt").read_text() == "cached"
    assert (cache / "file").read_text() == "cached"
    assert (tmp_path / "folder" / "deep" / "file.txt").read_text() == "new"
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file from an older layout")
    write_folder(tmp_path / "out")
    assert (tmp_path / "out").is_dir()


def test_a_folder_is_readable_by_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o755 == 0o755


# --- a full disk ----------------------------------------------------------------------------------


def write_large_file(folder: Path) -> str:
    return "storage.write_text(Path('out'), 'x' * 1_000_000)"


def write_large_folder(folder: Path) -> str:
    return (
        "with storage.whole_folder(Path('out')) as folder:\n"
        "    (folder / 'small').write_text('x')\n"
        "    (folder / 'large').write_text('x' * 1_000_000)\n"
    )


@pytest.mark.parametrize("write", [write_large_file, write_large_folder])
def test_a_write_past_the_limit_leaves_nothing_and_the_next_one_succeeds(
    write: Callable[[Path], str], tmp_path: Path
) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with an OSError, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = child(write(tmp_path), tmp_path, preexec_fn=limit)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OSError" in message
    assert names(tmp_path) == []
    process = child(write(tmp_path), tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert names(tmp_path) == ["out"]


# --- JSON -----------------------------------------------------------------------------------------


def test_equal_json_has_equal_bytes_and_is_read_back(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a", {"b": 1, "a": {"d": [1.5], "c": None}})
    storage.write_json(tmp_path / "b", {"a": {"c": None, "d": [1.5]}, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert storage.read_json(tmp_path / "a") == {"b": 1, "a": {"d": [1.5], "c": None}}


def test_missing_and_broken_json_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.json: no such file; run `dvc repro`"):
        storage.read_json(tmp_path / "gone.json")
    (tmp_path / "half.json").write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(ValueError, match=r"half\.json: not valid JSON .*delete it"):
        storage.read_json(tmp_path / "half.json")


# --- digests --------------------------------------------------------------------------------------


def grown(folder: Path, files: list[str]) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def test_digest_of_a_folder_is_independent_of_place_and_order(tmp_path: Path) -> None:
    files = ["a.txt", "b/c.txt", "b.txt", "b/a/d.txt"]
    one, two = grown(tmp_path / "one", files), grown(tmp_path / "x" / "two", files[::-1])
    os.utime(two / "a.txt", (0, 0))
    assert storage.digest(one) == storage.digest(two)
    assert len(storage.digest(one)) == 64


def test_digest_sees_content_names_and_what_is_missing(tmp_path: Path) -> None:
    files = ["a.txt", "b/c.txt"]
    folders = [grown(tmp_path / str(i), files) for i in range(4)]
    (folders[1] / "a.txt").write_text("other")
    (folders[2] / "a.txt").rename(folders[2] / "d.txt")
    (folders[3] / "b" / "c.txt").unlink()
    assert len({storage.digest(f) for f in folders}) == 4
    assert storage.digest(folders[0] / "a.txt") != storage.digest(folders[1] / "a.txt")


def test_digest_of_a_file_is_plain_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert storage.digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digest_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: no such file or folder"):
        storage.digest(tmp_path / "gone")


def test_digest_of_content_ignores_key_order() -> None:
    assert storage.digest_of({"a": 1, "b": [1, 2]}) == storage.digest_of({"b": [1, 2], "a": 1})
    assert storage.digest_of([1, 2]) != storage.digest_of([2, 1])
