"""Fixtures of the data tests."""

from pathlib import Path

import pytest
from samples import params, scenes_params

from sana_sprint import config


@pytest.fixture
def own() -> config.Prepare:
    return params(config.Folder(kind="folder", eval_share=0.3))


@pytest.fixture
def tars() -> config.Prepare:
    return params(config.WebDataset(kind="webdataset", eval_share=0.3))


@pytest.fixture(scope="session")
def scenes_raw(tmp_path_factory) -> Path:
    """data/raw of a small procedural corpus."""
    from sana_sprint.data import prepare

    out = tmp_path_factory.mktemp("scenes") / "raw"
    prepare.run(scenes_params(), Path("unused"), out)
    return out


@pytest.fixture(scope="session")
def foundation(sprint_folder, tmp_path_factory) -> Path:
    """A stock SanaPipeline folder of random weights, as the stage foundation leaves it."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaSprintPipeline

    parts = SanaSprintPipeline.from_pretrained(sprint_folder).components
    parts["scheduler"] = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    folder = tmp_path_factory.mktemp("models") / "foundation"
    SanaPipeline(**parts).save_pretrained(folder)
    return folder
