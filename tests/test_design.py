"""The architecture, read from the files: dvc.yaml says what the code does, and the code keeps its shape."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import design_closure
import pytest
from design_closure import PACKAGE, ROOT, SOURCE, STAGES

from sana_sprint import config

PIPELINE = config.read(ROOT / "dvc.yaml")["stages"]
PER_SIZE = {"prune", "convert", "distill", "schedule", "evaluate", "register"}
MATHS = sorted((SOURCE / PACKAGE / "maths").glob("[!_]*.py"))
CODE = sorted([*SOURCE.rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])
LIBRARY = sorted(
    p
    for p in (SOURCE / PACKAGE).rglob("*.py")
    if p.name not in {"config.py", "cli.py", "cli_lineage.py", "cli_registry.py", "cli_scores.py"}
)


@pytest.fixture(scope="module")
def imports():
    return design_closure.graph()


def script(stage: str) -> Path:
    return ROOT / "pipelines" / f"{stage}.py"


def paths(entries: list[str | dict[str, Any]]) -> list[str]:
    """Returns the paths of a deps or outs list, whose entries may carry options."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


# --- stage = script = section ---------------------------------------------------------------------


def test_stages_scripts_and_sections_have_the_same_names() -> None:
    assert set(PIPELINE) == set(STAGES)
    assert {p.stem for p in (ROOT / "pipelines").glob("*.py")} == set(STAGES)
    assert set(config.SECTIONS) == set(STAGES) | {"trigflow", "sampling"}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_runs_its_script_once_per_size_where_sizes_differ(stage: str) -> None:
    size = " --size ${item.size}" if stage in PER_SIZE else ""
    assert PIPELINE[stage]["cmd"] == f"python pipelines/{stage}.py{size}"
    assert PIPELINE[stage].get("matrix", {}) == ({"size": ["small", "base"]} if size else {})


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_that_the_script_loads(stage: str) -> None:
    (entry,) = PIPELINE[stage]["params"]
    ((file, sections),) = entry.items()
    assert file == "profiles/${profile}.yaml"
    assert sorted(sections) == sorted(design_closure.sections(script(stage)))
    assert stage in sections


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_code_that_the_script_imports(stage: str, imports) -> None:
    deps = paths(PIPELINE[stage]["deps"])
    assert len(deps) == len(set(deps))
    code = [d for d in deps if d.startswith(("src/", "pipelines/"))]
    needed = [f"pipelines/{stage}.py", *design_closure.closure(script(stage), imports)]
    assert sorted(code) == sorted(needed), "python tests/design_closure.py prints what belongs here"


@pytest.mark.parametrize("stage", STAGES)
def test_every_output_lies_in_data_and_every_other_dep_is_made_or_tracked(stage: str) -> None:
    outputs = [p for s in PIPELINE.values() for kind in ("outs", "metrics", "plots") for p in paths(s.get(kind, []))]
    assert all(p.startswith("data/") for p in outputs)
    grown = {p.replace("${item.size}", size) for p in outputs for size in ("small", "base")} | set(outputs)
    for dep in paths(PIPELINE[stage]["deps"]):
        made = dep in grown or any(dep.startswith(f"{p}/") for p in grown)
        fixed = dep.startswith(("src/", "pipelines/", "profiles/", "mlflow/")) and (ROOT / dep).exists()
        assert made or fixed or dep == "data/source/${profile}", f"nothing makes {dep}"


def test_only_scripts_load_params() -> None:
    for path in LIBRARY:
        loads = design_closure.loaded(path) & {cls.__name__ for cls in config.SECTIONS.values()}
        assert not loads, f"{path}: a section is loaded behind the back of dvc.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_script_is_short_and_says_what_it_reads_and_writes(stage: str) -> None:
    text = script(stage).read_text()
    assert text.startswith(f'"""Stage {stage}: ')
    assert len(text.splitlines()) <= 60
    assert text.rstrip().endswith("main()")


# --- the computation of the closure itself --------------------------------------------------------


def test_closure_follows_imports_in_functions_and_not_those_for_types(tmp_path: Path, imports) -> None:
    path = tmp_path / "stage.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from sana_sprint import config\n"
        "if TYPE_CHECKING:\n"
        "    from sana_sprint.evaluation import scene_parser\n"
        "def main():\n"
        "    from sana_sprint.models import heads\n"
        "    config.load(config.Prepare), config.load(config.TrigFlow)\n"
    )
    files = {f"src/sana_sprint/{f}.py" for f in ("config", "models/heads", "models/networks", "maths/trigflow")}
    assert files <= set(design_closure.closure(path, imports))
    assert "src/sana_sprint/evaluation/scene_parser.py" not in design_closure.closure(path, imports)
    assert design_closure.sections(path) == {"prepare", "trigflow"}


# --- the folder mlflow/ ---------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["mlflow", "data"])
def test_top_level_folder_is_no_package(folder: str) -> None:
    assert not list((ROOT / folder).glob("__init__.py")), f"{folder}/__init__.py would shadow an installed package"


def test_import_mlflow_is_the_installed_package() -> None:
    command = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    origin = Path(run.stdout.strip())
    assert origin.name == "__init__.py"
    assert ROOT / "mlflow" not in origin.parents


# --- the shape of the code ------------------------------------------------------------------------


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_file_is_short(path: Path) -> None:
    limit = 550 if path.name == "config.py" else 300  # one reader of params, one class per section
    assert len(path.read_text().splitlines()) <= limit


def test_no_folder_or_file_is_named_for_nothing() -> None:
    nothing = {"utils", "helpers", "common", "misc", "base", "manager"}
    assert not nothing & {part for p in CODE for part in p.relative_to(ROOT).with_suffix("").parts}


@pytest.mark.parametrize("path", MATHS, ids=lambda p: p.stem)
def test_public_maths_names_its_source_or_formula(path: Path) -> None:
    formula = re.compile(r"arXiv:|doi:|\b(19|20)\d\d\b|[=^]|\bsqrt\b")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node) or ""
            assert formula.search(docstring), f"{path.name}: {node.name} names neither source nor formula"


@pytest.mark.parametrize("path", MATHS, ids=lambda p: p.stem)
def test_maths_takes_tensors_and_numbers(path: Path) -> None:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert modules <= set(sys.stdlib_module_names) | {"torch", PACKAGE}


def test_mlflow_is_imported_in_registry_alone_lightning_in_training_and_ray_there_and_in_cluster() -> None:
    homes = {"mlflow": {"registry"}, "lightning": {"training"}, "ray": {"training", "cluster.py"}}
    for path in LIBRARY:
        home = path.relative_to(SOURCE / PACKAGE).parts[0]
        for library, allowed in homes.items():
            if re.search(rf"^\s*(import|from) {library}\b", path.read_text(), re.MULTILINE):
                assert home in allowed, f"{path} imports {library}"
