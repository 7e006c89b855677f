"""What a stage's script needs of src/: the closure of its imports and the sections that it loads.

`python tests/design_closure.py` prints the `deps:` and sections that dvc.yaml must have, stage by stage.
Imports inside functions count; those under `if TYPE_CHECKING` do not, because no run executes them.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
from grimp import ImportGraph

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PACKAGE = "sana_sprint"
STAGES = (
    "foundation",
    "prepare",
    "validate",
    "encode",
    "judge",
    "teacher",
    "prune",
    "convert",
    "distill",
    "schedule",
    "evaluate",
    "report",
    "register",
)


def graph() -> ImportGraph:
    """Returns the import graph of the package as it stands on disk."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    return grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yields every node below `node` except what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed(child)


def imported(script: Path, modules: set[str]) -> set[str]:
    """Returns the modules of the package that a script imports, anywhere in its body."""
    names: set[str] = set()
    for node in executed(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names & modules


def file_of(module: str) -> Path:
    """Returns the file that defines a module."""
    path = SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def packages_of(module: str) -> set[str]:
    """Returns the packages above a module: Python runs their __init__.py first."""
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def closure(script: Path, imports: ImportGraph) -> list[str]:
    """Returns the files of src/, relative to the root and sorted, that a run of the script can execute or
    read: modules, non-empty __init__.py files, and data files of the package that one of those names."""
    found = imported(script, set(imports.modules))
    grown: set[str] = set()
    while found != grown:
        grown = set(found)
        for module in grown:
            found |= imports.find_upstream_modules(module) | packages_of(module)
    files = {file_of(module) for module in found}
    data = [p for p in (SOURCE / PACKAGE).rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}]
    for _ in range(3):  # what a module names, and what that names: a template, the one that it extends, its style
        texts = [file.read_text() for file in files]
        files |= {p for p in data if any(f'"{p.name}"' in text or f"/{p.name}" in text for text in texts)}
    files = {p for p in files if p.name != "__init__.py" or p.stat().st_size}
    return sorted(p.relative_to(ROOT).as_posix() for p in files)


def loaded(script: Path) -> set[str]:
    """Returns the names of the section classes that a script passes to `config.load`."""
    classes: set[str] = set()
    for node in executed(ast.parse(script.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"config.load", "load"}:
            classes |= {ast.unparse(argument).removeprefix("config.") for argument in node.args[:1]}
    return classes


def sections(script: Path) -> set[str]:
    """Returns the names of the profile's sections that a script loads."""
    from sana_sprint import config

    names = {cls.__name__: name for name, cls in config.SECTIONS.items()}
    return {names[cls] for cls in loaded(script)}


def main() -> None:
    imports = graph()
    out = sys.stdout.write
    for stage in STAGES:
        script = ROOT / "pipelines" / f"{stage}.py"
        if not script.is_file():
            out(f"  # {stage}: no pipelines/{stage}.py\n")
            continue
        out(f"  {stage}:\n    deps:\n      - pipelines/{stage}.py\n")
        out("".join(f"      - {file}\n" for file in closure(script, imports)))
        out(f"    params:\n      - profiles/${{profile}}.yaml: [{', '.join(sorted(sections(script)))}]\n")


if __name__ == "__main__":
    main()
