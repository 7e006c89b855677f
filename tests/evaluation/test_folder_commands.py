"""`sana-sprint sample` and `score`, as a user calls them: what they print, write, and refuse."""

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from sana_sprint import cli
from sana_sprint.evaluation import folder_scores
from tests.evaluation.test_folder_scores import protocol_file, root
from tests.test_cli import parsed, refused

__all__ = ["root"]


def told(*words):
    """Returns the lines that a command printed, without the bars of its progress."""
    answer = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return answer.stdout.splitlines()


def test_geneval_is_drawn_once_scored_and_shown(root, tmp_path, sprint_folder, monkeypatch):
    (root / "params.yaml").write_text("profile: demo\n")
    monkeypatch.chdir(root)
    protocol = protocol_file(tmp_path, kind="geneval")
    assert "no list for 3 steps" in refused(
        "sample", str(protocol), "out", "--steps", "3", "--model", str(sprint_folder)
    )
    assert "out: no such folder; name a folder of pictures" in refused("score", str(protocol), "out")
    drawing = ["sample", str(protocol), "out", "--steps", "2", "--model", str(sprint_folder)]
    assert told(*drawing) == [f"out: 6 pictures, 6 of them drawn now, 2 steps, by {sprint_folder}"]
    there = {"folder": "out", "pictures": 6, "drawn": 0, "steps": 2, "model": str(sprint_folder)}
    assert parsed(*drawing) == there
    lines = told("score", protocol, "out")
    place = Path(lines[-1]).parent
    assert place.parent == root / "data/scores"
    scored = folder_scores.run(protocol, root / "out", tmp_path / "another cache", root)
    looked, found = scored.pop("looked"), json.loads((place / "scores.json").read_text())
    assert found == json.loads(json.dumps(scored))
    assert found["drawn"]["steps"] == 2
    for name, score in {"overall": found["scores"]["overall"], **found["scores"]["tasks"]}.items():
        (row,) = [line for line in lines if f" {name} " in line]
        assert f"{score['value']:.4f}" in row
        assert f"{score['se']:.4f}" in row
    assert f"out: 6 pictures, protocol {found['protocol_digest'][:12]}" in "".join(lines)
    results = [json.loads(line) for line in (place / "results.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in results] == [one["right"] for one in looked]
    assert (place / "index.html").read_text().count("<figure ") == 6
    shutil.copytree("out", "elsewhere/out")
    again = Path(told("score", protocol, "elsewhere/out")[-1])
    assert again.parent != place  # folders of one name do not overwrite each other's scores
    assert json.loads(again.read_text()) == found
    answer = parsed("score", str(protocol), "out", "--out", str(tmp_path / "own"))
    assert answer == {"file": str(tmp_path / "own/scores.json")} | found
    assert (tmp_path / "own/scores.json").read_bytes() == again.read_bytes()
