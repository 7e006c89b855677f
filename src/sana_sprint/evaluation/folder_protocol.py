"""Protocols of profiles/protocols/: what is scored in a folder of pictures, by which judges, on which terms.

A protocol is one YAML file. Its digest, which stands in every score, covers its content, the weights of its judges,
the reference pictures' or prompts' files, and the rules of this code that have numbers in them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from sana_sprint import config, storage
from sana_sprint.config import NonNegative, Positive, Scale, Section

if TYPE_CHECKING:
    from pathlib import Path


FILES = {
    "detector": "config.json, preprocessor_config.json and model.safetensors of a Mask2FormerForUniversalSegmentation",
    "clip": "config.json, preprocessor_config.json, tokenizer.json, tokenizer_config.json and model.safetensors of a "
    "CLIPModel",
    "inception": "model.safetensors with the Inception v3 of FID",
}  # in the folder of each judge


class Weights(Section):
    """A judge's folder, from the repository's root, and the digest it must have; null: any, and it is recorded."""

    folder: str
    sha256: str | None


class Size(Section):
    """The size that every scored picture has."""

    width: Positive
    height: Positive


class Drawn(Section):
    """How `sana-sprint sample` draws the pictures; nobody can read it off one made elsewhere. The noise of picture k of
    prompt i and of each step is a function of (seed, i, k, step) alone. `pictures_a_call` neighbouring pictures go
    through a network together, which changes their last bits. `instruction: pipeline` puts SANA's complex human
    instruction, as the stock pipeline has it, before each prompt."""

    seed: NonNegative
    guidance: Scale
    max_tokens: Positive
    pictures_a_call: Positive
    instruction: Literal["pipeline", "none"]
    precision: Literal["float32", "bf16-mixed"]
    times: dict[str, list[float]]

    @model_validator(mode="after")
    def _lists_fall_to_zero(self) -> Drawn:
        config.fall_to_zero("times", self.times)
        return self


class GenEval(Section):
    """GenEval (arXiv:2310.11513) of a folder in its own layout: <number>/metadata.jsonl, <number>/samples/*.png."""

    kind: Literal["geneval"]
    metadata: str  # GenEval's evaluation_metadata.jsonl, from the repository's root
    prompts: Positive
    pictures_per_prompt: Positive
    size_px: Size
    detector: Weights
    detector_size: dict[str, Positive]  # to which the detector's pictures are resized, as transformers names it
    clip: Weights
    drawn: Drawn

    @property
    def asked(self) -> str:
        """The file of the prompts, from the repository's root."""
        return self.metadata


class Distances(Section):
    """Distances of a folder to a folder of real pictures with the same captions, and how well captions are met.

    `captions` is a JSON file in the reference folder, {name: {"category", "prompt"}} as MJHQ-30K has it; the pictures
    of both folders are <category>/<name>.png or .jpg.
    """

    kind: Literal["distances"]
    reference: str
    captions: str
    pictures: Positive
    fid_pictures_min: Positive  # fewer than the features' 2,048 numbers leave a covariance of too low a rank
    neighbours: Positive  # of precision and recall
    pairwise_pictures_max: Positive  # of KID, CMMD, precision and recall, which compare every picture with every other
    batch: Positive
    size_px: Size
    inception: Weights
    clip: Weights
    drawn: Drawn

    @property
    def asked(self) -> str:
        """The file of the captions, from the repository's root."""
        return f"{self.reference}/{self.captions}"


Protocol = Annotated[GenEval | Distances, Field(discriminator="kind")]


def load(path: Path) -> GenEval | Distances:
    """Returns the protocol of a file. Raises ValueError naming file and key."""
    content = config.read(path)
    try:
        protocol: GenEval | Distances = TypeAdapter(Protocol).validate_python(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {config.faults(error)}") from None
    return protocol


def captions(protocol: Distances, root: Path) -> dict[str, dict[str, str]]:
    """Returns the captions of the reference folder by name, in the order of names. Raises ValueError naming what is
    wrong."""
    path = root / protocol.asked
    found = read_captions(path)
    if len(found) != protocol.pictures:
        raise ValueError(f"{path}: {len(found)} captions, the protocol asks for {protocol.pictures}")
    for name, one in found.items():
        if not isinstance(one, dict) or not {"category", "prompt"} <= set(one) or not inside(name, one["category"]):
            raise ValueError(f"{path}: {name}: expected a category and a prompt, got {one!r:.80}")
    return dict(sorted(found.items()))


def read_captions(path: Path) -> dict[str, Any]:
    """Returns what a file of captions holds. Raises ValueError naming it when it is missing or no JSON object."""
    remedy = "put the captions there as MJHQ-30K's meta_data.json has them, see README, section Protocols"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: no JSON object; {remedy}")
    return found


def inside(*parts: str) -> bool:
    """Tells whether names stay in their folder: no path, no way up."""
    return all(isinstance(part, str) and part not in ("", ".", "..") and "/" not in part for part in parts)


def weights(protocol: GenEval | Distances, root: Path) -> dict[str, dict[str, str]]:
    """Returns {judge: {"folder", "sha256"}} of the weights of all judges of a protocol. Raises ValueError naming the
    folder when it is missing, with the files that belong there, or when it is another than the protocol asks for."""
    found = {}
    for judge in [name for name in FILES if name in type(protocol).model_fields]:
        asked: Weights = getattr(protocol, judge)
        folder = root / asked.folder
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; it must hold {FILES[judge]}, see README, section Protocols")
        sha256 = storage.digest(folder)
        if asked.sha256 not in (None, sha256):
            raise ValueError(
                f"{folder}: its sha256 is {sha256}, the protocol asks for {asked.sha256}; fetch the folder again, or "
                f"set {judge}.sha256 of the protocol to this one or to null (any)"
            )
        found[judge] = {"folder": asked.folder, "sha256": sha256}
    return found
