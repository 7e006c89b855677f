"""Model folders: what may run when it is read, links, oversized files and what is not what its name says are refused by
name, whoever loads the folder; and no loader falls back to weights in a pickle."""

import gzip
import json
import pickle
import runpy
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sana_sprint import config, storage
from sana_sprint.data import latents
from sana_sprint.models import bundle
from sana_sprint.registry import draw, trust
from tests.registry.conftest import ROOT, repository
from tests.test_cli import refused as refuses

__all__ = ["repository"]


CODE = "mlflow.pyfunc.loaders.code_model"


class Planted:
    """What a pickle can do: write a file when it is read."""

    def __reduce__(self):
        return print, ("it ran",)


@pytest.fixture
def folder(sprint_folder, tmp_path):
    shutil.copytree(sprint_folder, tmp_path / "model")
    return tmp_path / "model"


def refused(folder):
    with pytest.raises(ValueError, match="is refused: ") as told:
        trust.check(folder)
    return str(told.value)


def test_a_stock_folder_passes(folder):
    trust.check(folder)


@pytest.mark.parametrize(
    "name", ["transformer/diffusion_pytorch_model.bin", "vae/config.json", "notes.txt", "x.safetensors"]
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_whatever_it_is_called(folder, name, protocol):
    (folder / name).write_bytes(pickle.dumps(Planted(), protocol=protocol))
    assert f"{name}: holds pickle" in refused(folder)


def test_what_torch_saves_is_refused_whatever_it_is_called(folder):
    torch.save({"a": torch.ones(2)}, folder / "extra.safetensors")
    assert "extra.safetensors: holds pickle" in refused(folder)


def test_weights_whose_length_begins_as_a_pickle_does_pass(folder):
    for length in (640, 896, 1152, 1408):  # 0x80 and 2 to 5, in the file's first two bytes
        header = json.dumps({"__metadata__": {"a": ""}})
        header = json.dumps({"__metadata__": {"a": "x" * (length - len(header))}}).encode()
        (folder / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header)
        assert not trust.pickled(folder / "x.safetensors")
        trust.check(folder)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("z.json", gzip.compress(pickle.dumps(Planted()), mtime=0), "no text"),
        ("z.json", b"{'a': 1}", "no JSON"),
        ("z.json", b"[" * 100_000, "no JSON"),
        ("vae/x.safetensors", bytes(100), "no safetensors (Error while deserializing header"),
        (
            "vae/x.safetensors",
            (2).to_bytes(8, "little") + b"{}more",
            "no safetensors (Error while deserializing header",
        ),
        ("NOTICE", b"a\0b", "no text: it holds zero bytes"),
        ("README.md", "Gruß".encode("latin-1"), "no text in UTF-8"),
        ("a.png", gzip.compress(b"a", mtime=0), "no .png file, by its first bytes"),
        ("tokenizer/tokenizer.model", b"PK\3\4", "no .model file, by its first bytes"),
    ],
)
def test_what_is_not_what_its_name_says_is_refused(folder, name, content, told):
    (folder / name).write_bytes(content)
    assert f"{name}: {told}" in refused(folder)


def test_what_a_downloaded_folder_holds_passes(folder):
    """As the Hub's folders of SANA have it: a vocabulary of sentencepiece, merges, a card with pictures, shards."""
    (folder / "tokenizer/tokenizer.model").write_bytes(b"\n\x0e\n\x05<pad>\x15\0\0\0\0\x18\x03")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\ni n\nt h\n")
    (folder / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "README.md").write_text("e.g. a. über\nN. B.\n", encoding="utf-8")
    (folder / "LICENSE").write_text("copyright\nof all\n")
    (folder / "assets").mkdir()
    for ending in ("png", "jpg", "webp"):
        Image.new("RGB", (2, 2)).save(folder / f"assets/a.{ending}")
    shard = "model-00001-of-00001.safetensors"
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder" / shard)
    index = {"metadata": {}, "weight_map": {"a": shard, "b": shard}}
    storage.write_json(folder / "text_encoder/model.safetensors.index.json", index)
    trust.check(folder)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..\\x", "..", "", "vae/config.json", "gone.safetensors", 1]
)
def test_an_index_of_shards_that_leads_out_of_its_folder_is_refused(folder, name):
    (folder.parent / "x").write_bytes(b"x")
    place = folder / "text_encoder/model.safetensors.index.json"
    storage.write_json(place, {"weight_map": {"a": "model.safetensors", "b": name}})
    assert f"index.json: its weight_map names {name!r}, which is no file beside it" in refused(folder)
    storage.write_json(place, {"weight_map": ["model.safetensors"]})
    assert "its weight_map is no list of tensors and files" in refused(folder)


@pytest.mark.parametrize("words", [["generate", "a"], ["sample", str(ROOT / "profiles/protocols/geneval.yaml"), "out"]])
def test_commands_that_draw_refuse_a_folder_that_holds_pickle(folder, repository, words):
    """Named by --model, and as the student that the pipeline made."""
    planted = "vae/diffusion_pytorch_model.bin"
    (folder / planted).write_bytes(pickle.dumps(Planted()))
    assert f"{folder} is refused: {planted}: holds pickle" in refuses(*words, "--model", str(folder))
    student = repository / "data/models/student/base"
    student.parent.mkdir(parents=True)
    shutil.copytree(folder, student)
    if words[0] == "generate":
        assert f"data/models/student/base is refused: {planted}: holds pickle" in refuses(*words)


def registered_code(folder):
    """The registered model's own loading of its pipeline."""
    code = runpy.run_path(str(ROOT / "mlflow/sprint_model.py"))
    code["SprintModel"]().load_context(SimpleNamespace(artifacts={"pipeline": str(folder)}))


LOADERS = {
    "generate": draw.loaded,
    "registered model": registered_code,
    "encode": lambda folder: latents.load(folder, config.Encode(batch=1, dtype="float32")),
    "frozen parts": bundle.load_frozen_parts,
}


@pytest.mark.parametrize("part", ["vae/diffusion_pytorch_model", "text_encoder/model"])
@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_falls_back_to_weights_in_a_pickle(folder, loader, part):
    LOADERS[loader](folder)
    weights = folder / f"{part}.safetensors"
    torch.save(load_file(weights), folder / f"{part.replace('/model', '/pytorch_model')}.bin")
    weights.unlink()
    with pytest.raises((OSError, ValueError), match="safetensors"):
        LOADERS[loader](folder)


def test_the_registered_models_own_code_passes_where_it_belongs(folder):
    for name in ("sprint_model.py", "__pycache__/sprint_model.cpython-311.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    trust.check(folder, registered=True)
    with pytest.raises(ValueError, match=r"sprint_model\.py: no kind of file"):
        trust.check_given(folder)


@pytest.mark.parametrize(
    "name",
    ["pipeline.py", "vae/hook.so", "old.pkl", "weights.h5", "vae/sprint_model.py", "__pycache__/x.cpython-311.pyc"],
)
def test_files_of_other_kinds_are_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert f"{name}: no kind of file" in refused(folder)


def test_links_out_of_the_folder_and_within_are_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "README.md").symlink_to("../secret")
    (folder / "elsewhere").symlink_to(tmp_path)
    told = refused(folder)
    assert "README.md: a link to ../secret" in told
    assert f"elsewhere: a link to {tmp_path}" in told


def test_a_file_over_the_limit_is_refused(folder, monkeypatch):
    save_file({"a": torch.zeros(750_000)}, folder / "big.safetensors")
    trust.check(folder)
    monkeypatch.setenv(trust.MAX_VARIABLE, "2")
    assert "big.safetensors: 3 MB, over SANA_SPRINT_MODEL_FILE_MAX_MB of 2" in refused(folder)
    monkeypatch.setenv(trust.MAX_VARIABLE, "much")
    with pytest.raises(ValueError, match="MAX_MB=much: must be a positive number"):
        trust.check(folder)


@pytest.mark.parametrize("named", ["python_model.pkl", "notes.txt"])
def test_a_model_that_mlflow_would_unpickle_is_refused(folder, named):
    flavour = {"loader_module": "mlflow.pyfunc.model", "python_model": named}
    for loader, told in {
        "mlflow.pyfunc.model": "loader_module is mlflow.pyfunc.model, and ",
        CODE: f"{named}, a pickle",
    }.items():
        storage.write_json(folder / "MLmodel", {"flavors": {"python_function": flavour | {"loader_module": loader}}})
        assert told in refused(folder)


FLAVOUR = {"loader_module": CODE, "model_code_path": "/made/elsewhere/sprint_model.py"}


@pytest.mark.parametrize("place", ["../../elsewhere", "/etc", "artifacts/../../x", "C:\\secrets", "..\\x"])
@pytest.mark.parametrize("key", ["artifacts", "data", "code", "env", "conda", "example"])
def test_a_model_file_that_leads_out_of_the_folder_is_refused(folder, key, place):
    flavour, content = dict(FLAVOUR), {}
    if key == "artifacts":
        flavour[key] = {"pipeline": {"path": place, "uri": "/where/it/was/made"}}
    elif key == "conda":
        flavour["env"] = {key: place}
    elif key == "example":
        content["saved_input_example_info"] = {"artifact_path": place}
    else:
        flavour[key] = place
    storage.write_json(folder / "MLmodel", content | {"flavors": {"python_function": flavour}})  # JSON is YAML
    assert f"{place}, which leads out of the model's folder" in refused(folder)


def test_a_model_file_of_our_own_passes_wherever_it_was_made(folder):
    flavour = FLAVOUR | {
        "artifacts": {"pipeline": {"path": "artifacts/pipeline", "uri": "/where/it/was/made"}},
        "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        "code": None,
    }
    storage.write_json(folder / "MLmodel", {"flavors": {"python_function": flavour}})
    trust.check(folder)
