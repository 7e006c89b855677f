"""Model folders: what may run when it is read, links and oversized files are refused by name."""

import pickle
import shutil

import pytest
import torch

from sana_sprint import storage
from sana_sprint.registry import trust


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
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_is_refused_whatever_it_is_called(folder, name, protocol):
    (folder / name).write_bytes(pickle.dumps(Planted(), protocol=protocol))
    assert f"{name}: holds pickle" in refused(folder)


def test_what_torch_saves_is_refused_whatever_it_is_called(folder):
    torch.save({"a": torch.ones(2)}, folder / "extra.safetensors")
    assert "extra.safetensors: holds pickle" in refused(folder)


def test_the_registered_models_own_code_passes_where_it_belongs(folder):
    for name in ("sprint_model.py", "__pycache__/sprint_model.cpython-311.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    trust.check(folder)


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
    with (folder / "big.safetensors").open("wb") as file:
        file.truncate(3_000_000)
    trust.check(folder)
    monkeypatch.setenv(trust.MAX_VARIABLE, "2")
    assert "big.safetensors: 3 MB, over SANA_SPRINT_MODEL_FILE_MAX_MB of 2" in refused(folder)
    monkeypatch.setenv(trust.MAX_VARIABLE, "much")
    with pytest.raises(ValueError, match="MAX_MB=much: must be a positive number"):
        trust.check(folder)


def test_a_model_that_mlflow_would_unpickle_is_refused(folder):
    lines = "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
    (folder / "MLmodel").write_text(lines)
    assert "MLmodel: python_model is python_model.pkl, a pickle" in refused(folder)
    (folder / "MLmodel").write_text(lines.replace("python_model.pkl", "sprint_model.py"))
    trust.check(folder)


FLAVOUR = {"loader_module": "mlflow.pyfunc.loaders.code_model", "model_code_path": "/made/elsewhere/sprint_model.py"}


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
