"""Students made elsewhere: any SanaSprintPipeline folder becomes a version like those of this pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint import config, storage
from sana_sprint.registry import file_kinds, history, measured, trust
from sana_sprint.registry.register import ELSEWHERE, Student

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sana_sprint.config import PartLicences, Sampling

PIPELINE = "SanaSprintPipeline"
WEIGHED, OTHERS = ("text_encoder", "transformer", "vae"), ("scheduler", "tokenizer")  # its parts
NO_SCORES: dict[str, Any] = {"protocol": {}, "protocol_digest": "not scored", "scores": {}}


def student(
    folder: Path,
    name: str,
    licence: str,
    link: str | None,
    description: str,
    scores: Path | None,
    default: Sampling,
    parts: PartLicences,
) -> Student:
    """Returns what is registered of a folder. Where it has no sampling.json of ours, times, guidance and caption length
    are those of the profile in use. Raises ValueError for a name that no model may have, for what is no such pipeline
    and for what must not be in one."""
    try:
        config.registrable(name)
    except ValueError as error:
        raise ValueError(f"--name {name!r}: {error}") from None
    trust.check_given(folder)
    index = storage.read_json(folder / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise ValueError(f"{folder}/model_index.json: a {index.get('_class_name')}, and {PIPELINE} is asked for")
    if missing := list(absent(folder, index)):
        raise ValueError(f"{folder}: {'; '.join(missing)}; download or save the whole pipeline")
    how = sampling(folder, default)
    evaluation = storage.read_json(scores) if scores else NO_SCORES
    lacks = [key for key in ("protocol", "protocol_digest", "scores") if key not in evaluation]
    if lacks:
        raise ValueError(f"{scores}: keys {lacks} are missing; name evaluate's JSON, or leave --scores out")
    if scores:
        measured.checked_protocol(evaluation, scores)
    evaluation = {"size": ELSEWHERE, "times": how["times"]} | evaluation
    made = {"made": ELSEWHERE, "registered_by": history.who()}
    return Student(folder, name, evaluation, scores, how, licence, description, made, {}, link, parts)


def absent(folder: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Yields in words what a pipeline lacks to be loaded: parts, and weights of networks."""
    for part in (*WEIGHED, *OTHERS):
        place = folder / part
        if None in (index.get(part) or [None]):
            yield f"model_index.json names no {part}"
        elif not place.is_dir():
            yield f"no folder {part}"
        elif part in WEIGHED and not any(place.glob(f"*{file_kinds.WEIGHTS}")):
            yield f"no weights in {part}"


def part_licences(told: list[str]) -> config.PartLicences:
    """Returns the licences told as PART=LICENCE; those of other parts are unknown. Raises ValueError for another form
    and for what is no part."""
    known: dict[str, str | None] = dict.fromkeys(config.PartLicences.model_fields)
    for text in told:
        part, _, licence = (word.strip() for word in text.partition("="))
        if part not in known or not licence:
            raise ValueError(f"--part-licence {text!r}: name one as PART=LICENCE, of the parts {', '.join(known)}")
        known[part] = licence
    return config.PartLicences.model_validate(known)


def sampling(folder: Path, default: Sampling) -> dict[str, Any]:
    """Returns how a folder is sampled: its own sampling.json, else the profile's settings at the network's size."""
    if (folder / "sampling.json").is_file():
        found: dict[str, Any] = storage.read_json(folder / "sampling.json")
        absent = [key for key in ("times", "guidance", "height_px", "width_px", "max_tokens") if key not in found]
        if absent:
            raise ValueError(f"{folder}/sampling.json: keys {absent} are missing")
        return {"instruction": []} | found
    network, vae = (storage.read_json(folder / part / "config.json") for part in ("transformer", "vae"))
    side_px = network["sample_size"] * 2 ** (len(vae["encoder_block_out_channels"]) - 1)
    sigma_d = storage.read_json(folder / "scheduler/scheduler_config.json").get("sigma_data")
    return default.model_dump() | {"height_px": side_px, "width_px": side_px, "sigma_d": sigma_d}
