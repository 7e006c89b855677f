"""What all commands of `sana-sprint` share: every fault of the user ends in one line on stderr and exit code 1, what a
check refuses in exit code 3; --json prints one JSON on stdout and nothing else."""

from __future__ import annotations

import functools
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED = 3
CODES = f"Exit codes: 0 done, 1 error (one line on stderr), 2 no such option or argument, {REFUSED} a check refuses."
OBJECT_STORE = ("boto3.", "botocore.")  # modules whose exceptions are an S3 client's
KEYS = "the artefact store is reached by MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
LINE_MAX = 300  # characters of a value in a tree
TREE_WIDTH, TABLE_WIDTH = 1000, 160  # in a file, where one searches in lines: no line of a tree is broken there
Json = Annotated[bool, typer.Option("--json", help="Print one JSON on stdout and nothing else.")]
HELP = "From a text-to-image teacher to a registered student of 1 to 4 steps: draw, score, promote."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)


def with_example(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns what makes a function a command whose help ends with these examples and the exit codes, and whose faults
    are told in one line. SANA_SPRINT_TRACEBACK=1 shows the traceback."""
    epilog = "\n\n".join([*(f"Example: {one}" for one in examples), CODES])

    def made(function: Callable[..., None]) -> Callable[..., None]:
        told = _told(function)
        return app.command(name=function.__name__, epilog=epilog)(told)

    return made


def _told(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, OSError) as error:
            _end(error)
        except Exception as error:
            if not type(error).__module__.startswith(("mlflow.", *OBJECT_STORE)):  # known without their import
                raise
            _end(error)

    return told


def _end(error: Exception) -> None:
    if os.environ.get("SANA_SPRINT_TRACEBACK") == "1":
        raise error
    remedy = f": {KEYS}" if type(error).__module__.startswith(OBJECT_STORE) else ""
    typer.echo(f"error: {' '.join(str(error).split())}{remedy}", err=True)
    raise typer.Exit(1)


def refuse(reason: str) -> None:
    """Ends the command: a check does not hold."""
    typer.echo(f"refused: {' '.join(reason.split())}", err=True)
    raise typer.Exit(REFUSED)


def emit(content: Any) -> None:
    """Prints content as JSON."""
    typer.echo(json.dumps(content, indent=2))


def tell(content: Any, line: str, as_json: bool) -> None:
    """Prints content as JSON, or else the line that says it in words."""
    if as_json:
        emit(content)
    elif line:
        typer.echo(line)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table with its title, as wide as the terminal, or TABLE_WIDTH into a file."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for column in columns:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else TABLE_WIDTH).print(shown)


def tree(title: str, content: dict[str, Any]) -> None:
    """Prints nested content as a tree; a value of more than LINE_MAX characters is cut."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def grow(branch: Tree, part: dict[str, Any]) -> None:
        for key, value in part.items():
            name = key.replace("_", " ") if key.isidentifier() else key  # not of params and paths
            if isinstance(value, dict):
                grow(branch.add(Text(name)), value)
            else:
                text = str(value)
                branch.add(Text(f"{name}: {text if len(text) <= LINE_MAX else text[:LINE_MAX] + ' ...'}"))

    top = Tree(Text(title))
    grow(top, content)
    Console(width=None if sys.stdout.isatty() else TREE_WIDTH).print(top)
