"""The digests of a version's files: what was changed in the store, the code among it, is named and not used."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sana_sprint.registry import audit, digests, packed, transfer, trust, versions
from tests.registry.conftest import NAME, SIZE, evaluation
from tests.registry.test_promote import promoted
from tests.registry.test_transfer import other
from tests.test_cli import call, refused
from tests.test_cli_registry import parsed

__all__ = ["other"]


@pytest.fixture
def model_folder(tmp_path):
    """A model in a store, and its tags."""
    folder = tmp_path / "model"
    for name in ("MLmodel", "sprint_model.py", "artifacts/pipeline/model_index.json", "evaluation/small.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    tags = digests.tags(digests.of(folder)) | digests.score_tags({}, folder / "evaluation/small.json")
    return folder, tags


def found(model_folder, own_disk=False, scores=True):
    return digests.faults(*model_folder, own_disk, scores)


def test_files_that_differ_are_missing_or_too_many_are_named(model_folder):
    folder, _ = model_folder
    assert found(model_folder) == []
    (folder / "sprint_model.py").write_text("other code")
    (folder / "MLmodel").unlink()
    (folder / "artifacts/pipeline/more.json").write_text("{}")
    assert found(model_folder) == [
        "MLmodel is missing",
        "artifacts/pipeline/more.json was not registered",
        "sprint_model.py differs",
    ]


def test_scores_count_where_they_are_asked_for(model_folder):
    folder, tags = model_folder
    (folder / "evaluation/small.json").write_text("other scores")
    (folder / "evaluation/more.json").write_text("more")
    told = ["evaluation/more.json was not registered", "evaluation/small.json differs"]
    assert (found(model_folder), found(model_folder, scores=False)) == (told, [])
    again = digests.score_tags(tags, folder / "evaluation/more.json")
    assert set(packed.unpack(again, digests.SCORE_LIST)) == {"evaluation/small.json", "evaluation/more.json"}


def test_a_list_that_was_changed_is_told(model_folder):
    folder, tags = model_folder
    (folder / "sprint_model.py").write_text("other code")
    others = digests.tags(digests.of(folder))
    told = ["the list of its files, tag 'file_digests', was changed"]
    assert digests.faults(folder, tags | {digests.LIST: others[digests.LIST]}, False, False) == told
    gone = {key: value for key, value in tags.items() if key != digests.LIST}
    assert digests.faults(folder, gone, False, False) == told


def test_what_reading_it_in_place_leaves_behind_is_no_fault_there_alone(model_folder):
    folder, _ = model_folder
    (folder / "registered_model_meta").write_text("model_name: a")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/sprint_model.cpython-311.pyc").write_bytes(b"compiled")
    assert found(model_folder, own_disk=True) == []
    assert found(model_folder) == ["__pycache__/sprint_model.cpython-311.pyc was not registered"]


def test_a_registered_student_s_code_that_was_changed_in_the_store_is_named_and_not_used(registered, server, other):
    """By every way that a version is fetched: a picture, a transfer, the audit."""
    registered(evaluation(0.3, 0.5))
    registered(evaluation(0.31, 0.5))  # other scores of the same weights
    call("promote")
    version = versions.resolve(server, f"models:/{NAME}@champion")
    folder = versions.fetched(server, version, scores=True)
    listed = packed.unpack(version.tags, digests.LIST) | packed.unpack(version.tags, digests.SCORE_LIST)
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert {"MLmodel", "sprint_model.py", "requirements.txt", f"evaluation/{SIZE}.json"} < set(listed)
    assert hashlib.sha256(packed.joined(version.tags, digests.LIST).encode()).hexdigest() == version.tags[digests.SEAL]
    assert parsed("audit", NAME, "--files")[0]["notes"] == []
    with (folder / trust.OWN_CODE).open("a") as file:
        file.write("\nPath('/tmp/ran').write_text('ran')\n")
    told = "its files are not as they were registered: sprint_model.py differs"
    assert told in refused("generate", "a red circle", "--model", f"models:/{NAME}@champion", "--steps", "1")
    with pytest.raises(ValueError, match=f"{told}; in .*, so nothing was copied"):
        transfer.transfer(server, f"models:/{NAME}@champion", other.tracking_uri)
    assert f"names version 1, whose files are refused: {told}" in refused("audit", NAME, "--files", code=3)
    assert versions.every(other, NAME) == []


def listing(model, number):
    """Gives a version of the conftest's the tags that registration adds once its files are in the store."""
    version = model.server.get_model_version(model.name, number)
    files = digests.of(Path(versions.root(model.server, version).removeprefix("file://")))
    for key, value in digests.tags(files).items():
        model.tag(number, key, value)


def test_a_version_from_before_there_were_lists_is_checked_by_what_it_has_and_the_audit_says_so(model, rules):
    listing(model, model.add(evaluation(0.40, 0.70)))
    promoted(model, rules)
    model.add(evaluation(0.50, 0.70))
    promoted(model, rules)
    chain, faults = audit.audit(model.server, model.name, files=True)
    assert faults == []
    (note,) = audit.unlisted(model.server, chain)
    assert note.startswith("version 2 was registered before every file's digest was recorded: its pipeline folder was")
    (model.place / "1" / versions.PIPELINE / "weights.txt").write_text("others")
    with pytest.raises(ValueError, match="version 2: its files are not as they were registered: they have the digest"):
        versions.fetched(model.server, model.server.get_model_version(model.name, "2"))


def test_a_transfer_to_where_it_is_already_brings_new_scores_and_no_digests_of_files_elsewhere(model, other):
    number = model.add(evaluation(0.40, 0.70))
    listing(model, number)
    here = model.place / "0"
    (here / "evaluation").mkdir()
    for text in ('"first"', '"second"'):
        scores = here / "evaluation/small.json"
        scores.write_text(text)
        for key, value in digests.score_tags({}, scores).items():
            model.tag(number, key, value)
        told = transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
        assert told["new"] == (text == '"first"')
        there = other.get_model_version(model.name, "1")
        folder = versions.fetched(other, there, scores=True)
        assert (folder / "evaluation/small.json").read_text() == text
    scores.write_text('"third"')
    for key, value in digests.score_tags({}, scores).items():
        model.tag(number, key, value)
    scores.write_text('"changed in the store"')
    with pytest.raises(ValueError, match="evaluation: not as it was registered, so nothing was copied"):
        transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
    scores.write_text('"third"')
    model.tag(number, digests.SEAL, "of another registration")
    transfer.transfer(model.server, f"models:/{model.name}/1", other.tracking_uri)
    assert other.get_model_version(model.name, "1").tags[digests.SEAL] == there.tags[digests.SEAL]


def test_what_is_fetched_for_a_process_is_gone_when_it_ends(tmp_path):
    program = "from sana_sprint.registry import versions; print(versions._of_this_process())"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert Path(made.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
