"""The report's tables of the search of times: the lists found, what they gain, on which captions that rests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.evaluation import report_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LISTS = ("found", "profile", "baseline")


def schedules(folder: Path, sizes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a table per size whose search of times lies in the folder: the lists found beside the profile's and the
    baseline's, which in the profiles are the paper's, and what is gained over the last."""
    found = {size: storage.read_json(folder / f"{size}.json") for size in sizes if (folder / f"{size}.json").is_file()}
    return [schedule(size, content) for size, content in found.items()]


def schedule(size: str, found: dict[str, Any]) -> dict[str, Any]:
    """Returns a search's table, a row per step count, and the words that say on which captions it rests."""
    captions, rows = found["captions"], []
    for steps, times in found["found"].items():
        lists = [listed(found[name].get(steps)) for name in LISTS]
        gains = found["gains"][steps]
        scores = [report_tables.with_error(gains.get(name)) for name in LISTS]
        drawn = "found" if found["times"][steps] == times else "profile"
        rows.append([steps, *lists, *scores, report_tables.gain(gains.get("gain")), drawn])
    shared = captions["shared_with_evaluate"]
    words = (
        f"Sought on {captions['tried']} prompts of the training split and compared on {captions['checked']} others "
        f"({captions['in_both']} captions are in both), score and gain by {found['measure'].replace('_', ' ')} ± one "
        f"standard error; the gain is that of the list drawn by over the baseline's, paired by prompt. "
    )
    words += (
        f"{shared} of the training split's captions are evaluate's as well, because their tasks have no others. "
        if shared
        else "None of their captions is evaluate's. "
    )
    words += f"Protocol of the search: {found['protocol_digest'][:12]}."
    head = ["steps", *LISTS, *(f"score, {name}" for name in LISTS), "gain", "drawn by"]
    return {"title": f"Times, {size}", "size": size, "words": words, "head": head, "rows": rows}


def listed(times: Sequence[float] | None) -> str:
    """Returns a list of times in radians without its closing 0, or a dash."""
    return ", ".join(f"{time:g}" for time in times[:-1]) if times else "-"
