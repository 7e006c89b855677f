"""Latents and text embeddings, computed once: the name of a cached file holds a key over all that went into
it.

A file's key covers the shard's bytes (or the captions), the encoder's weights, resolution, dtype, prompt
settings and this module's source, so a stale file cannot be taken for a fresh one. Latents are stored as SANA
has them: autoencoder output * scaling_factor, (N, C, H, W) float32, a file per shard. Text goes through the stock
pipeline's own code; its embeddings are stored in files of at most PORTION captions, so that a kill loses one file's
and memory holds one file's. Used by the stage encode.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sana_sprint import storage
from sana_sprint.data import loader, manifest, pictures, shards

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sana_sprint.config import Encode, Sampling

KEY_DIGITS = 12
TEXT_PARTS = ("tokenizer", "text_encoder")
PORTION = 512  # captions per file of embeddings: 0.7 GB of SANA's 300 x 2304 bfloat16, 2 GB of memory while written


@dataclass(frozen=True)
class Plan:
    """Files that data/latents must hold: each shard's by name, and the captions' with the rows of `sentences` in
    each.
    """

    files: dict[str, str]
    captions_files: dict[str, range]
    sentences: list[str]
    source_sha256: dict[str, str]
    key: str


def encode(params: Encode, sampling: Sampling, raw: Path, foundation: Path, out: Path) -> dict[str, float]:
    """Brings data/latents up to date: keeps files whose key fits, makes the others, removes stale ones,
    writes the index last. An interrupted call is continued by the next. Returns counts: pictures, encoded,
    kept, captions.
    """
    rows = manifest.read(raw)
    require_size(sampling, rows)
    plan = planned(params, sampling, rows, raw, foundation)
    out.mkdir(parents=True, exist_ok=True)
    of_shard: dict[str, list[manifest.Row]] = {shard: [] for shard in plan.files}
    for row in rows:
        of_shard[row.shard].append(row)
    missing = [shard for shard, file in plan.files.items() if not whole(out / file)]
    missing_text = [file for file in plan.captions_files if not whole(out / file)]
    if missing or missing_text:
        pipeline = load(foundation, params)
        if missing_text:
            write_text(pipeline, params, sampling, plan, missing_text, out)
        for shard in missing:
            write_shard(pipeline, params, of_shard[shard], plan, raw, out)
    counts = {shard: len(part) for shard, part in of_shard.items()}
    storage.write_json(out / loader.INDEX, index(plan, rows, counts, foundation))
    keep = {loader.INDEX, *plan.captions_files, *plan.files.values()}
    for stale in out.iterdir():
        if stale.name not in keep:
            stale.unlink()
    encoded = sum(counts[shard] for shard in missing)
    return {
        "pictures": len(rows),
        "encoded": encoded,
        "kept": len(rows) - encoded,
        "captions": len(plan.sentences) - 1,
    }


def require_size(sampling: Sampling, rows: Sequence[manifest.Row]) -> None:
    """Raises ValueError when pictures are to be drawn at another size than the data has."""
    size = (sampling.height_px, sampling.width_px)
    other = next((row for row in rows if (row.height, row.width) != size), None)
    if other is not None:
        raise ValueError(
            f"{other.key}: the picture is {other.height} x {other.width} px but sampling.height_px, width_px "
            f"say {size[0]} x {size[1]}; make prepare.resolution_px and these equal"
        )


def planned(params: Encode, sampling: Sampling, rows: Sequence[manifest.Row], raw: Path, foundation: Path) -> Plan:
    """Returns which files a set of rows and encoders needs."""
    source = storage.digest(Path(__file__))
    sentences = ["", *sorted({row.caption for row in rows})]
    parts = [storage.digest(foundation / part) for part in TEXT_PARTS]
    prompt = [sampling.max_tokens, sampling.instruction]
    text_key = short([source, params.dtype, sentences, parts, prompt])
    vae = storage.digest(foundation / "vae")
    digests = {name: storage.digest(raw / shards.FOLDER / name) for name in dict.fromkeys(r.shard for r in rows)}
    size = [rows[0].height, rows[0].width] if rows else []
    files = {
        name: f"{Path(name).stem}-{short([source, params.dtype, text_key, vae, digest, size])}.safetensors"
        for name, digest in digests.items()
    }
    captions_files = {
        f"captions-{text_key}-{rows.start}-{rows.stop}.safetensors": rows
        for rows in portions(len(sentences), params.batch)
    }
    key = short([*captions_files, *sorted(files.values())])
    return Plan(files, captions_files, sentences, digests, key)


def portions(count: int, batch: int) -> list[range]:
    """Returns the rows of `count` sentences that share a file: the first, which is embedded alone, then whole batches,
    so that a sentence's neighbours in its batch are the same in whatever portions.
    """
    size = max(PORTION // batch, 1) * batch
    return [range(*pair) for pair in pairwise([0, *range(1 + size, count, size), count])]


def short(content: Any) -> str:
    """Returns the first digits of the digest of JSON-able content."""
    return storage.digest_of(content)[:KEY_DIGITS]


def whole(path: Path) -> bool:
    """Whether a cached file is there and its header fits its length."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool(file.keys())
    except (SafetensorError, OSError):
        return False


def index(plan: Plan, rows: Sequence[manifest.Row], counts: dict[str, int], foundation: Path) -> dict[str, Any]:
    """Returns the content of index.json."""
    splits = {row.shard: row.split for row in rows}
    return {
        "shards": [
            {
                "file": file,
                "split": splits[name],
                "count": counts[name],
                "source_sha256": plan.source_sha256[name],
            }
            for name, file in plan.files.items()
        ],
        "captions_files": [{"file": file, "count": len(rows)} for file, rows in plan.captions_files.items()],
        "captions": plan.sentences,
        "scaling_factor": storage.read_json(foundation / "vae" / "config.json")["scaling_factor"],
        "key": plan.key,
    }


def load(foundation: Path, params: Encode) -> Any:
    """Returns the stock pipeline of a foundation folder without its transformer, on the accelerator if there
    is one.
    """
    from diffusers import SanaSprintPipeline  # seconds to import

    try:
        pipeline = SanaSprintPipeline.from_pretrained(
            foundation,
            transformer=None,
            torch_dtype=getattr(torch, params.dtype),
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, SafetensorError) as error:
        reason = pictures.one_line(error)
        raise ValueError(f"{foundation}: no readable foundation ({reason}); run `dvc repro -f foundation`") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def embed(pipeline: Any, sampling: Sampling, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Returns embeddings (B, L, D) and mask (B, L) int64 of prompts as the stock SanaSprintPipeline makes
    them.
    """
    embeds, mask = pipeline.encode_prompt(
        prompts,
        max_sequence_length=sampling.max_tokens,
        complex_human_instruction=sampling.instruction or None,
    )
    return embeds.cpu(), mask.long().cpu()


def embed_null(pipeline: Any, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Returns the empty caption's (1, L, D) and (1, L): as the stock SanaPipeline does for guidance, without
    instruction.
    """
    return embed(pipeline, sampling.model_copy(update={"instruction": []}), [""])


@torch.no_grad()
def latent(pipeline: Any, pixels: np.ndarray) -> Tensor:
    """Returns latents (B, C, H/f, W/f) float32 of pixels (B, H, W, 3) uint8: autoencoder output *
    scaling_factor.
    """
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(pipeline.vae.device, pipeline.vae.dtype) / 127.5 - 1
    return (pipeline.vae.encode(images).latent.float() * pipeline.vae.config.scaling_factor).cpu()


def write_text(pipeline: Any, params: Encode, sampling: Sampling, plan: Plan, files: Sequence[str], out: Path) -> None:
    """Writes some of the files of embeddings, one after the other."""
    total = sum(len(plan.captions_files[file]) for file in files)
    with tqdm(total=total, desc="encode captions", mininterval=3) as bar:
        for file in files:
            parts = []
            for part in embedded(pipeline, params, sampling, plan.sentences, plan.captions_files[file]):
                parts.append(part)
                bar.update(len(part[0]))
            embeds, mask = (torch.cat(tensors).contiguous() for tensors in zip(*parts, strict=True))
            with storage.whole_file(out / file) as unfinished:
                save_file({"embeds": embeds, "mask": mask}, unfinished)


def embedded(
    pipeline: Any, params: Encode, sampling: Sampling, sentences: list[str], rows: range
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields embeddings and mask of rows of `sentences`, batch by batch; the first is the empty one."""
    if rows.start == 0:
        yield embed_null(pipeline, sampling)
    for start in range(max(rows.start, 1), rows.stop, params.batch):
        yield embed(pipeline, sampling, sentences[start : start + params.batch])


def write_shard(pipeline: Any, params: Encode, rows: Sequence[manifest.Row], plan: Plan, raw: Path, out: Path) -> None:
    """Writes the latents of one shard. Raises ValueError when the shard does not fit the manifest."""
    name = rows[0].shard
    path = raw / shards.FOLDER / name
    samples = shards.read(path)
    number = {sentence: row for row, sentence in enumerate(plan.sentences)}
    parts, keys = [], []
    bar = tqdm(total=len(rows), desc=f"encode {Path(name).stem}", mininterval=3)
    for batch in batches(samples, params.batch):
        parts.append(latent(pipeline, np.stack([pictures.from_png(sample.png) for sample in batch])))
        keys += [sample.key for sample in batch]
        bar.update(len(batch))
    bar.close()
    if keys != [row.key for row in rows]:
        raise ValueError(f"{path}: its pictures are not those of the manifest; run `dvc repro -f prepare`")
    latents = torch.cat(parts).contiguous()
    if not bool(latents.isfinite().all()):
        raise ValueError(f"{path}: the autoencoder gave values that are not finite; try encode.dtype float32")
    captions = torch.tensor([number[row.caption] for row in rows])
    with storage.whole_file(out / plan.files[name]) as unfinished:
        save_file({"latents": latents, "captions": captions}, unfinished)


def batches(samples: Iterator[shards.Sample], size: int) -> Iterator[list[shards.Sample]]:
    """Yields lists of at most `size` samples."""
    while batch := list(islice(samples, size)):
        yield batch
