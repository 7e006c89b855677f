"""The CLIP that FID and CLIP score use: a small one trained on the corpus, or public weights from a local
folder.

Both are a transformers CLIPModel folder with tokenizer and preprocessor_config.json, read by the same code.
FID features are the projected picture embeddings before normalisation (CLIP-FID, arXiv:2203.06026).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from sana_sprint import storage
from sana_sprint.evaluation import fitting, judge_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from sana_sprint.config import TrainJudge

RESIZE = (
    "shorter edge bicubic with antialiasing (Pillow), the longer one rounded down, square from the centre, its left "
    "and top rounded down, "
    "pixels / 255, mean and deviation"
)
AS_CLIP = {"resample": 3, "do_resize": True, "do_center_crop": True, "do_normalize": True}  # 3: bicubic
REMEDY = "copy the folder again, or run `dvc repro -f judge` if it is data/models/judge"
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer and the content of its preprocessor_config.json."""

    model: Any
    tokenizer: Any
    preprocessor: dict[str, Any]

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[np.ndarray] | np.ndarray, batch: int = 64) -> Tensor:
        """Returns the projected features (N, D) of RGB uint8 pictures (H, W, 3)."""
        parts = []
        for start in range(0, len(pictures), batch):
            pixels = prepared(pictures[start : start + batch], self.preprocessor).to(self.model.device)
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            parts.append(self.model.visual_projection(pooled).float().cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def captions(self, captions: Sequence[str], batch: int = 256) -> Tensor:
        """Returns the projected features (N, D) of captions."""
        distinct = sorted(set(captions))
        parts = []
        for start in range(0, len(distinct), batch):
            tokens = encoded(self.tokenizer, distinct[start : start + batch]).to(self.model.device)
            pooled = self.model.text_model(**tokens).pooler_output
            parts.append(self.model.text_projection(pooled).float().cpu())
        return torch.cat(parts)[[distinct.index(caption) for caption in captions]]

    def save(self, folder: Path) -> None:
        """Writes model (safetensors), tokenizer and preprocessor into a folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        storage.write_json(folder / "preprocessor_config.json", self.preprocessor)


def encoded(tokenizer: Any, captions: Sequence[str]) -> Any:
    """Returns token ids and mask of captions, cut to the tokenizer's longest length."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")


def prepared(pictures: Sequence[np.ndarray] | np.ndarray, preprocessor: dict[str, Any]) -> Tensor:
    """Returns pictures (N, 3, S, S) resized by their shorter edge, cropped at the centre and normalised, as CLIP's
    preprocessor does (arXiv:2103.00020; transformers' CLIPImageProcessor, whose crop lies a pixel beside that of
    OpenAI's own where what is cut off is 3 modulo 4 px).
    """
    edge = preprocessor["size"]
    edge = edge["shortest_edge"] if isinstance(edge, dict) else edge
    crop = preprocessor["crop_size"]
    crop = crop["height"] if isinstance(crop, dict) else crop
    stack = np.stack([cropped(picture, edge, crop) for picture in pictures])
    x = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(preprocessor[key]).reshape(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    return (x - mean) / std


def cropped(picture: np.ndarray, edge: int, crop: int) -> np.ndarray:
    """Returns a picture with its shorter edge at `edge` (bicubic) and a square of `crop` px from its
    centre.
    """
    height, width = picture.shape[:2]
    if min(height, width) != edge:
        size = (edge * width // min(height, width), edge * height // min(height, width))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        height, width = picture.shape[:2]
    top, left = (height - crop) // 2, (width - crop) // 2
    return picture[top : top + crop, left : left + crop]


def load(folder: Path) -> Clip:
    """Returns the CLIP of a local folder, on the accelerator if there is one. Raises ValueError naming the folder and
    what it lacks or cannot be read."""
    from transformers import AutoTokenizer, CLIPModel

    judge_folder.content(folder, "config.json", "CLIPModel", REMEDY)
    preprocessor = judge_folder.content(folder, "preprocessor_config.json", "CLIPModel", REMEDY)
    model = judge_folder.network(CLIPModel, folder, REMEDY)
    side = model.config.vision_config.image_size
    if not prepares(preprocessor, side):
        raise ValueError(
            f"{folder / 'preprocessor_config.json'}: must have size, crop_size, image_mean and image_std that make a "
            f"picture {side} x {side} px as CLIP does, bicubic and cut from the centre; {REMEDY}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001  tokenizers raises it bare
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: no tokenizer.json that can be read ({reason:.200}); {REMEDY}") from None
    longest = model.config.text_config.max_position_embeddings
    if tokenizer.model_max_length > longest:
        raise ValueError(f"{folder}: no tokenizer_config.json with a model_max_length up to {longest}; {REMEDY}")
    return Clip(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, preprocessor)


def prepares(preprocessor: dict[str, Any], side: int) -> bool:
    """Tells whether a preprocessor_config.json brings pictures to side x side px in CLIP's own way."""
    if any(preprocessor.get(key, value) != value for key, value in AS_CLIP.items()):
        return False
    try:
        x = prepared([np.zeros((side, 2 * side, 3), np.uint8)], preprocessor)
    except (KeyError, TypeError, ValueError, RuntimeError):
        return False
    return x.shape == (1, 3, side, side)


def make_tokenizer(captions: Sequence[str], vocabulary: int, max_tokens: int) -> Any:
    """Returns a lower-casing byte-pair tokenizer of at most `vocabulary` tokens trained on captions."""
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    inner = tk.Tokenizer(tk.models.BPE(unk_token=UNKNOWN))
    inner.normalizer = tk.normalizers.Sequence([tk.normalizers.NFC(), tk.normalizers.Lowercase()])
    inner.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, UNKNOWN, START, END], show_progress=False
    )
    inner.train_from_iterator(sorted(set(captions)), trainer)
    ids = [(token, inner.token_to_id(token)) for token in (START, END)]
    inner.post_processor = tk.processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        model_max_length=max_tokens,
    )


def make_model(params: TrainJudge, tokenizer: Any, size_px: int) -> Any:
    """Returns a CLIPModel of the section's shape with random weights. Raises ValueError for sizes that do not
    fit.
    """
    from transformers import CLIPConfig, CLIPModel

    if size_px % params.patch_px or params.width % params.heads:
        raise ValueError(
            f"judge.model: patch_px {params.patch_px} must divide the picture's {size_px} px and heads "
            f"{params.heads} the width {params.width}"
        )
    shape = {
        "hidden_size": params.width,
        "intermediate_size": 2 * params.width,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "projection_dim": params.embedding,
    }
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = shape | special | {"vocab_size": len(tokenizer), "max_position_embeddings": params.max_tokens}
    vision = shape | {"image_size": size_px, "patch_size": params.patch_px}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=params.embedding))


def contrastive(images: Tensor, texts: Tensor, scale: Tensor, caption_B: Tensor) -> Tensor:
    """Returns CLIP's symmetric cross-entropy (arXiv:2103.00020, figure 3) where every pair of equal captions
    in the batch counts as a match, each with an equal share (SupCon, arXiv:2004.11362, eq. 2).
    """
    logits = scale.exp() * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    same = (caption_B[:, None] == caption_B[None]).float()
    target = same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def train(params: TrainJudge, pictures: np.ndarray, captions: Sequence[str]) -> Clip:
    """Returns a CLIP trained on pictures (N, H, H, 3) uint8 and their captions, deterministic from
    params.seed.
    """
    size_px = pictures.shape[1]
    tokenizer = make_tokenizer(captions, params.vocabulary, params.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        model = make_model(params, tokenizer, size_px)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    clip = Clip(model, tokenizer, {"size": {"shortest_edge": size_px}, "crop_size": {"height": size_px}} | half)
    distinct = sorted(set(captions))
    caption_N = torch.tensor([distinct.index(caption) for caption in captions])
    tokens = encoded(tokenizer, distinct)

    def loss_of(rows: Tensor) -> Tensor:
        pixels = prepared(list(pictures[rows.numpy()]), clip.preprocessor)
        ids = caption_N[rows]
        images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        pooled = model.text_model(tokens.input_ids[ids], attention_mask=tokens.attention_mask[ids]).pooler_output
        return contrastive(images, model.text_projection(pooled), model.logit_scale, ids)

    fitting.fit(model, loss_of, len(pictures), params.steps, params.batch, params.optimizer, params.seed, "judge CLIP")
    return clip


def retrieval(clip: Clip, images: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Returns how well a picture finds its own caption among the distinct ones given: {"accuracy"} it is the nearest,
    {"chance"} of that by luck, {"ranking"} the mean share of other captions that are farther (luck: 0.5). "a circle"
    is true of a red one too, so captions that leave something open are seldom the nearest."""
    distinct = sorted(set(captions))
    own = torch.tensor([distinct.index(caption) for caption in captions])
    cosine = functional.normalize(images, dim=1) @ functional.normalize(clip.captions(distinct), dim=1).T
    farther = (cosine < cosine.gather(1, own[:, None])).sum(1)
    return {
        "accuracy": float((cosine.argmax(1) == own).double().mean()),
        "chance": 1 / len(distinct),
        "ranking": float(farther.double().mean()) / max(len(distinct) - 1, 1),
    }
