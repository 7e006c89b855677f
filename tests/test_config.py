"""Every profile fits the classes, and every fault in one is refused by the names of file and key."""

import math
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from sana_sprint import config
from sana_sprint.config import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


def demo() -> dict[str, Any]:
    """Returns the sections of the default profile, to be spoilt."""
    return config.read(ROOT / "profiles" / "demo.yaml")


def written(folder: Path, sections: dict[str, Any]) -> Path:
    """Writes a project with one profile `spoilt` and returns its root."""
    (folder / "profiles").mkdir()
    (folder / "params.yaml").write_text("profile: spoilt\n")
    YAML(typ="safe").dump(sections, folder / "profiles" / "spoilt.yaml")
    return folder


def refusal(folder: Path, name: str, sections: dict[str, Any]) -> str:
    """Returns the message with which a section of a profile is refused."""
    root = written(folder, sections)
    with pytest.raises(ValueError, match=r"profiles/spoilt\.yaml: ") as error:
        config.load(SECTIONS[name], root)
    assert type(error.value) is ValueError
    assert "\n" not in str(error.value), "one line"
    return str(error.value)


# --- what is right --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("name", SECTIONS)
def test_profile_is_valid(path: Path, name: str) -> None:
    assert type(config.parse(SECTIONS[name], name, path)) is SECTIONS[name]


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_profile_has_every_step_count_that_is_evaluated(path: Path) -> None:
    times = config.parse(config.Sampling, "sampling", path).times
    assert set(times) == {"1", "2", "3", "4"}
    assert all(math.pi / 2 - 0.02 < t[0] <= 1.5708 for t in times.values()), "sampling starts from noise"


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_profile_s_parts_fit_each_other(path: Path) -> None:
    sampling = config.parse(config.Sampling, "sampling", path)
    prepare = config.parse(config.Prepare, "prepare", path)
    prune = config.parse(config.Prune, "prune", path)
    distill = config.parse(config.Distill, "distill", path)
    assert sampling.height_px == sampling.width_px == prepare.resolution_px
    assert set(prune.sizes) == {"small", "base"}, "dvc.yaml runs over these names"
    assert min(distill.guidance) <= sampling.guidance <= max(distill.guidance), "a scale the student has seen"
    model = config.parse(config.Foundation, "foundation", path).model
    if isinstance(model, config.TrainFoundation):
        width = model.transformer.heads * model.transformer.head_dim
        assert width % model.transformer.cross_heads == 0
        assert max(distill.heads.blocks) < model.transformer.layers, "heads tap blocks that the teacher has"
        assert all(s.layers <= model.transformer.layers for s in prune.sizes.values())
        assert all(s.heads <= model.transformer.heads for s in prune.sizes.values())


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_new_heads_are_well_in_every_profile(path: Path) -> None:
    low, high = config.parse(config.Distill, "distill", path).health.accuracy
    assert low < 0.5 < high, "heads that toss a coin are new, not ill"


@pytest.mark.parametrize(
    ("recipe", "heads", "dmd", "turns"),
    [
        ("scm", 3, 2, []),
        ("ladd", 2, 5, [["heads"], ["heads"]]),
        ("sprint", 1, 5, [["heads"]]),
        ("dmd", 5, 2, [["fake_score"], ["fake_score"]]),
        ("scm_dmd", 5, 1, [["fake_score"]]),
        ("sprint_dmd", 1, 2, [["heads", "fake_score"], ["fake_score"]]),
        ("ladd_dmd", 3, 1, [["heads", "fake_score"], ["heads"], ["heads"]]),
    ],
)
def test_an_iteration_has_the_turns_of_its_recipe_s_critics(
    recipe: str, heads: int, dmd: int, turns: list[list[str]]
) -> None:
    section = demo()["distill"] | {"recipe": recipe}
    section["heads"]["steps"], section["dmd"]["steps"] = heads, dmd
    params = config.Distill.model_validate(section)
    assert params.turns == 1 + len(turns)
    assert [params.critics(turn) for turn in range(1, params.turns)] == turns


def test_every_recipe_can_be_named() -> None:
    named = get_args(config.Distill.model_fields["recipe"].annotation)
    assert set(named) == set(config.RECIPES)


def test_the_profile_in_use_exists() -> None:
    assert config.profile(ROOT) in config.known_profiles(ROOT / "profiles")


def test_a_section_is_frozen() -> None:
    section = config.parse(config.TrigFlow, "trigflow", ROOT / "profiles" / "demo.yaml")
    with pytest.raises(ValueError, match="frozen"):
        section.sigma_d = 1.0


def test_every_section_of_the_classes_has_no_default() -> None:
    pending, seen = list(SECTIONS.values()), set()
    while pending:
        cls = pending.pop()
        seen.add(cls)
        for name, field in cls.model_fields.items():
            assert field.is_required(), f"{cls.__name__}.{name} has a default in code"
        pending += [c for c in config.Section.__subclasses__() if c not in seen]


def test_yaml_1_2_reads_numbers_as_dvc_does(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("a: 1e-3\nb: 1.0e-3\nc: no\nd: 010\n")
    assert config.read(tmp_path / "p.yaml") == {"a": 0.001, "b": 0.001, "c": "no", "d": 10}


# --- what is wrong --------------------------------------------------------------------------------


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Returns a change that sets a key of the profile."""

    def change(sections: dict[str, Any]) -> None:
        for key in keys[:-1]:
            sections = sections[key]
        sections[keys[-1]] = value

    return change


def take(*keys: str, into: str | None = None) -> Callable[[dict[str, Any]], None]:
    """Returns a change that removes a key of the profile, or renames it."""

    def change(sections: dict[str, Any]) -> None:
        for key in keys[:-1]:
            sections = sections[key]
        value = sections.pop(keys[-1])
        if into:
            sections[into] = value

    return change


FAULTS = {
    "misspelt key": (
        take("distill", "seed", into="sead"),
        "distill",
        ["distill.sead", "distill.seed: missing"],
    ),
    "misspelt key in a part": (
        put("distill", "heads", "optimizer", "learning_rate", value=1.0),
        "distill",
        ["distill.heads.optimizer.learning_rate"],
    ),
    "missing key": (take("teacher", "flow", "batch"), "teacher", ["teacher.flow.batch: missing"]),
    "probability above 1": (
        put("distill", "max_time_prob", value=1.5),
        "distill",
        ["distill.max_time_prob", "1.5"],
    ),
    "probability below 0": (put("validate", "quarantine_share_max", value=-0.1), "validate", ["-0.1"]),
    "no steps": (put("distill", "iterations", value=0), "distill", ["distill.iterations"]),
    "negative seed": (put("prune", "seed", value=-1), "prune", ["prune.seed"]),
    "sigma_d of 0": (put("trigflow", "sigma_d", value=0.0), "trigflow", ["trigflow.sigma_d"]),
    "number as text": (
        put("distill", "student", "lr", value="1e-3"),
        "distill",
        ["distill.student.lr", "valid number", "1e-3"],
    ),
    "fraction of a step": (put("distill", "iterations", value=2.5), "distill", ["distill.iterations"]),
    "yes for true": (
        put("distill", "heads", "misaligned_pairs", value="yes"),
        "distill",
        ["misaligned_pairs"],
    ),
    "one number for a list": (put("distill", "guidance", value=3.0), "distill", ["distill.guidance"]),
    "empty list": (put("prune", "guidance", value=[]), "prune", ["prune.guidance"]),
    "unknown kind": (
        put("prepare", "source", "kind", value="folders"),
        "prepare",
        ["prepare.source", "folders"],
    ),
    "another kind's key": (put("prepare", "source", "eval_share", value=0.1), "prepare", ["eval_share"]),
    "unknown precision": (put("teacher", "precision", value="fp8"), "teacher", ["teacher.precision", "fp8"]),
    "missing section": (take("encode"), "encode", ["section 'encode' is missing"]),
    "section of null": (put("encode", value=None), "encode", ["encode"]),
    "name of a model that leads elsewhere": (
        put("register", "model_name", value="../.."),
        "register",
        ["register.model_name", "no name of a registered model"],
    ),
    "name of a model that is a path": (put("register", "model_name", value="/a"), "register", ["register.model_name"]),
    "unknown section": (put("destill", value={}), "encode", ["unknown section", "destill", "distill"]),
    "unknown recipe": (put("distill", "recipe", value="sprint+dmd"), "distill", ["distill.recipe", "'sprint_dmd'"]),
    "unknown derivative": (put("distill", "derivative", value="jvp"), "distill", ["distill.derivative", "'semi'"]),
    "no step of a difference": (put("distill", "derivative_step", value=0.0), "distill", ["distill.derivative_step"]),
    "critic that never moves": (put("distill", "dmd", "steps", value=0), "distill", ["distill.dmd.steps"]),
    "dmd of no weight": (put("distill", "dmd", "weight", value=0.0), "distill", ["distill.dmd.weight"]),
    "one bound of accuracy": (
        put("distill", "health", "accuracy", value=[0.3]),
        "distill",
        ["distill.health.accuracy", "at least 2"],
    ),
    "three bounds of accuracy": (
        put("distill", "health", "accuracy", value=[0.3, 0.5, 0.9]),
        "distill",
        ["distill.health.accuracy", "at most 2"],
    ),
    "accuracy in percent": (
        put("distill", "health", "accuracy", value=[0.3, 99.0]),
        "distill",
        ["distill.health.accuracy.1", "99.0"],
    ),
    "bounds of accuracy that fall": (
        put("distill", "health", "accuracy", value=[0.999, 0.3]),
        "distill",
        ["distill.health", "lowest < highest", "[0.999, 0.3]"],
    ),
    "bounds of accuracy that meet": (
        put("distill", "health", "accuracy", value=[0.5, 0.5]),
        "distill",
        ["distill.health", "lowest < highest"],
    ),
    "tangents of no length": (
        put("distill", "health", "tangent_norm_max", value=0.0),
        "distill",
        ["distill.health.tangent_norm_max"],
    ),
    "no patience": (put("distill", "health", "patience_iterations", value=0), "distill", ["patience_iterations"]),
    "fewer returns than none": (put("distill", "health", "returns_max", value=-1), "distill", ["returns_max"]),
    "times that rise": (
        put("sampling", "times", "2", value=[1.3, 1.5, 0.0]),
        "sampling",
        ["sampling", "times.2", "falling"],
    ),
    "times that stand": (put("sampling", "times", "2", value=[1.3, 1.3, 0.0]), "sampling", ["times.2"]),
    "times that do not end in 0": (put("sampling", "times", "1", value=[1.5, 0.1]), "sampling", ["times.1"]),
    "too few times": (
        put("sampling", "times", "4", value=[1.5, 1.0, 0.0]),
        "sampling",
        ["times.4 must be 4"],
    ),
    "no times": (put("sampling", "times", "1", value=[]), "sampling", ["times.1"]),
    "times in steps of 1000": (put("sampling", "times", "1", value=[999.0, 0.0]), "sampling", ["above pi/2"]),
    "times for no number": (put("sampling", "times", "few", value=[1.5, 0.0]), "sampling", ["times.few"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_by_the_names_of_file_and_key(fault: str, tmp_path: Path) -> None:
    change, name, parts = FAULTS[fault]
    sections = demo()
    change(sections)
    message = refusal(tmp_path, name, sections)
    for part in parts:
        assert part in message, message


def test_a_fault_mended_is_a_profile_again(tmp_path: Path) -> None:
    sections = demo()
    put("distill", "iterations", value=0)(sections)
    refusal(tmp_path, "distill", sections)
    YAML(typ="safe").dump(demo(), tmp_path / "profiles" / "spoilt.yaml")
    assert config.load(config.Distill, tmp_path).iterations == demo()["distill"]["iterations"]


def test_every_fault_of_a_section_is_named_at_once(tmp_path: Path) -> None:
    sections = demo()
    put("distill", "iterations", value=0)(sections)
    put("distill", "ema_decay", value=2.0)(sections)
    message = refusal(tmp_path, "distill", sections)
    assert "distill.iterations" in message
    assert "distill.ema_decay" in message


def test_a_profile_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    root = written(tmp_path, demo())
    (root / "params.yaml").write_text("profile: domo\n")
    with pytest.raises(ValueError, match=r"domo\.yaml: no such file; profiles there are: \['spoilt'\]"):
        config.load(config.TrigFlow, root)


@pytest.mark.parametrize("text", ["profil: demo\n", "profile: 3\n", "profile:\n"])
def test_params_without_a_profile_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml: the key 'profile' must name a file of profiles/"):
        config.profile(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("trigflow: [1", "not valid YAML"),
        ("- trigflow\n", "expected a mapping of sections, got list"),
        ("trigflow: {sigma_d: 0.5}\ntrigflow: {sigma_d: 1.0}\n", "not valid YAML"),
    ],
    ids=["broken", "list", "one key twice"],
)
def test_a_file_that_is_no_profile_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"p\.yaml: ") as error:
        config.parse(config.TrigFlow, "trigflow", tmp_path / "p.yaml")
    assert reason in str(error.value)


def test_the_readmes_own_pictures_profile_fits_and_is_named_after_itself(tmp_path):
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"^    (sed '1,2d;.*?) profiles/digits.yaml > profiles/mine.yaml$", readme, re.M | re.S)
    words = shlex.split(command)
    made = subprocess.run([*words, str(ROOT / "profiles/digits.yaml")], capture_output=True, text=True, check=True)
    file = tmp_path / "mine.yaml"
    file.write_text(made.stdout)
    for name, cls in SECTIONS.items():
        config.parse(cls, name, file)
    assert "digits" not in made.stdout
    content = config.read(file)
    assert content["register"]["model_name"] == "sana-sprint-mine"
    assert content["evaluate"]["judge"] == "none"
