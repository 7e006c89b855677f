"""The one reader of params: a frozen pydantic class per section of a profile, strict, without defaults.

params.yaml names the profile; profiles/<profile>.yaml holds every scientific number, once. A stage loads its own
section and the shared ones it names in dvc.yaml (`trigflow`, `sampling`). Machine settings come from the
environment, never from here.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Prob = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A section or a part of one: unknown keys, wrong types and missing values are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrigFlow(Section):
    """Shared: the scale of TrigFlow data and noise."""

    sigma_d: Scale


class Sampling(Section):
    """Shared: how pictures are drawn. `times` maps a step count to its falling TrigFlow times (radians)."""

    height_px: Positive
    width_px: Positive
    guidance: Scale
    teacher_guidance: Scale
    teacher_steps: Positive
    teacher_shift: Scale
    max_tokens: Positive
    instruction: list[str]  # lines of the complex human instruction put before each prompt; none: []
    times: dict[str, list[float]]

    @model_validator(mode="after")
    def _lists_fall_to_zero(self) -> Sampling:
        fall_to_zero("times", self.times)
        return self


def fall_to_zero(name: str, lists: dict[str, list[float]]) -> None:
    """Raises ValueError for a list that is none of its number of steps: falling times (radians) and a closing 0."""
    for steps, times in lists.items():
        falls = all(a > b for a, b in itertools.pairwise(times))
        if not steps.isdigit() or len(times) != int(steps) + 1 or times[-1] != 0 or not falls:
            raise ValueError(f"{name}.{steps} must be {steps} falling times and a closing 0, got {times}")
        if times[0] > 1.5708:
            raise ValueError(f"{name}.{steps} starts above pi/2: {times[0]}")


class Scenes(Section):
    """Source: the procedural corpus (data/scenes.py)."""

    kind: Literal["scenes"]
    shapes: list[str] = Field(min_length=2)
    colours: list[str] = Field(min_length=2)
    counts: list[int] = Field(min_length=1)
    train_images: Positive
    eval_images: Positive
    heldout_share: Prob
    task_weights: dict[str, Weight]


class Folder(Section):
    """Source: images in data/source/<profile> with metadata.jsonl, metadata.csv or .txt sidecars."""

    kind: Literal["folder"]
    eval_share: Rate


class WebDataset(Section):
    """Source: tar shards in data/source/<profile> as img2dataset writes them."""

    kind: Literal["webdataset"]
    eval_share: Rate


class Prepare(Section):
    """Stage prepare."""

    seed: NonNegative
    resolution_px: Positive
    images_per_shard: Positive
    max_source_pixels: Positive
    source: Scenes | Folder | WebDataset = Field(discriminator="kind")


class Validate(Section):
    """Stage validate: `suite` names profiles/suites/<suite>.yaml."""

    suite: str
    quarantine_share_max: Prob


class Optimizer(Section):
    """AdamW with a linear warm-up over `warmup_steps` and a linear decay over the last `decay_share` of the run."""

    lr: Scale
    betas: list[Prob] = Field(min_length=2, max_length=2)
    weight_decay: Weight
    warmup_steps: NonNegative
    decay_share: Prob
    grad_norm_max: Scale


class Autoencoder(Section):
    """DC-AE of ResBlocks trained on the corpus; `decoder_steps` fine-tune the decoder alone."""

    latent_channels: Positive
    widths: list[Positive] = Field(min_length=2)
    layers: list[NonNegative]
    steps: Positive
    decoder_steps: NonNegative
    batch: Positive
    latent_noise: Weight
    gradient_weight: Weight
    square_weight: Weight
    regulariser_weight: Weight
    optimizer: Optimizer


class TextEncoder(Section):
    """A byte-pair tokenizer trained on the corpus and a small Gemma2 with frozen random weights of deviation
    `init_std`, whose first layer looks back `window` tokens, so that a noun carries its adjectives."""

    vocabulary: Positive
    width: Positive
    layers: Positive
    heads: Positive
    window: Positive
    init_std: Scale


class Flow(Section):
    """Rectified-flow training; flow time s = sigmoid(time_mean + time_std n)."""

    steps: Positive
    batch: Positive
    time_mean: float
    time_std: Scale
    caption_dropout: Prob
    ema_decay: Prob
    optimizer: Optimizer


class Transformer(Section):
    """Shape of the base SanaTransformer2DModel."""

    layers: Positive
    heads: Positive
    head_dim: Positive
    cross_heads: Positive
    mlp_ratio: Scale
    patch_px: Positive
    position_embedding: bool


class TrainFoundation(Section):
    """Foundation trained from scratch on the corpus."""

    kind: Literal["train"]
    seed: NonNegative
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    transformer: Transformer
    flow: Flow


class LoadFoundation(Section):
    """Foundation taken from a local diffusers folder or a hub id at a pinned revision. `sha256` maps files of the
    folder to their recorded digests."""

    kind: Literal["load"]
    source: str
    revision: str
    sha256: dict[str, str]


class Foundation(Section):
    """Stage foundation."""

    model: TrainFoundation | LoadFoundation = Field(discriminator="kind")


class Encode(Section):
    """Stage encode."""

    batch: Positive
    dtype: Literal["float32", "bfloat16"]


class TrainJudge(Section):
    """A small CLIP trained on the corpus, and a classifier of captions where `classifier` asks for one."""

    kind: Literal["train"]
    seed: NonNegative
    width: Positive
    layers: Positive
    heads: Positive
    embedding: Positive
    patch_px: Positive
    vocabulary: Positive
    max_tokens: Positive
    steps: Positive
    batch: Positive
    classifier_steps: NonNegative
    optimizer: Optimizer


class LoadJudge(Section):
    """Public CLIP weights from a local folder."""

    kind: Literal["load"]
    clip: str


class Judge(Section):
    """Stage judge."""

    model: TrainJudge | LoadJudge = Field(discriminator="kind")


class Kept(Section):
    """A training's precision, how often its state is kept, in its steps or iterations, and how many states stay."""

    precision: Literal["32-true", "bf16-mixed"]
    checkpoint_every: Positive
    keep_checkpoints: Positive

    def made_of(self) -> dict[str, Any]:
        """Returns the params that what is trained depends on: all but these two."""
        return self.model_dump(exclude={"checkpoint_every", "keep_checkpoints"})


class Teacher(Kept):
    """Stage teacher: fine-tune with dense time and QK-norm, all layers together."""

    seed: NonNegative
    flow: Flow


class Size(Section):
    """A student's size: blocks, self-attention heads and feed-forward ratio that remain."""

    layers: Positive
    heads: Positive
    mlp_ratio: Scale


class Prune(Kept):
    """Stage prune: cut by importance, then heal against the guided teacher."""

    seed: NonNegative
    calibration_samples: Positive
    sizes: dict[str, Size]
    guidance: list[Scale] = Field(min_length=1)
    flow_share: Prob  # samples healed on the data with guidance 1, the rest on the guided teacher
    feature_weight: Weight  # of the distance of block outputs, but the last, to the teacher's
    healing: Flow
    score_prompts: Positive


class Convert(Section):
    """Stage convert: largest absolute differences that still count as lossless."""

    seed: NonNegative
    samples: Positive
    steps: Positive
    round_trip_tolerance: Scale
    sampling_tolerance: Scale


class LogNormal(Section):
    """Time sampler t = arctan(exp(tau) / sigma_d), tau ~ N(mean, std^2)."""

    mean: float
    std: Scale


class HeadsSection(Section):
    """LADD's discriminator heads on the outputs of the teacher's `blocks` (from 0)."""

    blocks: list[NonNegative] = Field(min_length=1)
    norm: Literal["batch", "layer"]
    virtual_batch: Positive
    time: LogNormal
    misaligned_pairs: bool
    steps: Positive  # in an iteration
    optimizer: Optimizer


class FakeScore(Section):
    """The network that learns the student's own distribution for the term `dmd`."""

    weight: Scale
    time: LogNormal
    steps: Positive  # in an iteration
    optimizer: Optimizer


class Health(Section):
    """When a distillation counts as ill. A fault must last `patience_iterations`; the run then returns to its last
    good checkpoint with other draws, at most `returns_max` times."""

    grad_norm_max: Scale
    tangent_norm_max: Scale | None  # of sCM's tangent, which grows as the root of the latents' size; null: no limit
    patience_iterations: Positive
    accuracy: list[Prob] = Field(min_length=2, max_length=2)  # of the heads, lowest and highest
    sample_std_max: Scale  # deviation of the student's one-step latents, whose data have deviation 1
    diversity_min: Weight  # deviation across the grid's one-step latents, whose data have deviation 1
    score_kept_min: Prob  # share of the best quick score so far that a later one must reach
    returns_max: NonNegative

    @model_validator(mode="after")
    def _accuracy_rises(self) -> Health:
        low, high = self.accuracy
        if low >= high:
            raise ValueError(f"accuracy must be [lowest, highest] with lowest < highest, got {self.accuracy}")
        return self


RECIPES: dict[str, frozenset[str]] = {
    "sprint": frozenset({"scm", "ladd"}),
    "sprint_dmd": frozenset({"scm", "ladd", "dmd"}),
    "scm_dmd": frozenset({"scm", "dmd"}),
    "ladd_dmd": frozenset({"ladd", "dmd"}),
    "scm": frozenset({"scm"}),
    "ladd": frozenset({"ladd"}),
    "dmd": frozenset({"dmd"}),
}


class Distill(Kept):
    """Stage distill. `recipe` names the terms of the student's loss: the paper's is `sprint`, sCM + LADD. An
    iteration is one step of the student and the steps of its critics."""

    seed: NonNegative
    recipe: Literal["sprint", "sprint_dmd", "scm_dmd", "ladd_dmd", "scm", "ladd", "dmd"]
    latents: Literal["data", "teacher"]  # of pictures, or drawn by the teacher for their captions
    tangent_precision: Literal["float32", "network"]
    iterations: Positive
    global_batch: Positive
    time: LogNormal
    max_time_prob: Prob
    guidance: list[Scale] = Field(min_length=1)
    scm_weight: Scale
    ladd_weight: Scale
    derivative: Literal["exact", "semi", "difference"]
    derivative_step: Scale  # of the last two: along time in radians, or along the path
    tangent_norm_c: Scale
    size_invariant_norm: bool
    log_variance: bool
    tangent_warmup_iterations: NonNegative
    ema_decay: Prob
    student: Optimizer
    heads: HeadsSection
    dmd: FakeScore
    health: Health
    grid_every: Positive
    score_prompts: NonNegative  # of the quick score beside each grid; none: 0
    log_every: Positive

    @property
    def terms(self) -> frozenset[str]:
        """The terms of the recipe."""
        return RECIPES[self.recipe]

    @property
    def turns(self) -> int:
        """Optimisation steps in an iteration: turn 0 is the student's, the others are its critics'."""
        return 1 + max([c.steps for t, c in (("ladd", self.heads), ("dmd", self.dmd)) if t in self.terms], default=0)

    def critics(self, turn: int) -> list[str]:
        """Returns the networks that move in a turn after the student's."""
        have = {"heads": "ladd" in self.terms and turn <= self.heads.steps}
        have["fake_score"] = "dmd" in self.terms and turn <= self.dmd.steps
        return [name for name, moves in have.items() if moves]


class Schedule(Section):
    """Stage schedule: which times (radians) are tried for the first step and for the later ones, on how many captions,
    and the lists that what is found is compared with."""

    seed: NonNegative
    prompts_per_task: Positive
    first: list[Scale] = Field(min_length=1)
    later: list[Scale] = Field(min_length=3)
    baseline: dict[str, list[float]]

    @model_validator(mode="after")
    def _times_are_times(self) -> Schedule:
        fall_to_zero("baseline", self.baseline)
        high = [t for t in (*self.first, *self.later) if t > 1.5708]
        if high:
            raise ValueError(f"first and later must be times up to pi/2, got {high}")
        unknown = sorted(set(self.baseline) - {"1", "2", "3", "4"})
        if unknown:
            raise ValueError(f"baseline: lists of 1 to 4 steps can be compared, got {unknown}")
        return self


class Evaluate(Section):
    """Stage evaluate."""

    seed: NonNegative
    judge: Literal["scenes", "classes", "none"]
    prompts_per_task: Positive
    batch: Positive
    teacher_fewer_steps: list[Positive]  # of the teacher beside sampling.teacher_steps, for quality against time
    latency_runs: Positive
    latency_batches: list[Positive] = Field(min_length=1)  # pictures at once, rising; peak memory: the most of all
    protocols: list[str]  # files of profiles/protocols under which students are scored besides


class Report(Section):
    """Stage report."""

    title: str
    prompts: Positive


MODEL_NAME_LENGTH_MAX = 200  # MLflow keeps 256; size and `.history` come behind
HISTORY_SUFFIX = ".history"  # of the companion model that holds a model's history


def registrable(name: str) -> str:
    """Returns a name that a registered model may have. MLflow takes most names without `/` and `:`; folders and queries
    are made of it here, so it is letters, digits, `_`, `-`, `.` and spaces. Raises ValueError for another."""
    if not re.fullmatch(r"[^\W_](?:[\w .-]*[\w.-])?", name) or len(name) > MODEL_NAME_LENGTH_MAX:
        raise ValueError(
            f"no name of a registered model: begin with a letter or digit; then letters, digits, '_', '-', '.' and "
            f"spaces, {MODEL_NAME_LENGTH_MAX} characters at most"
        )
    if name.endswith(HISTORY_SUFFIX):
        raise ValueError(f"no name of a registered model: '{HISTORY_SUFFIX}' ends the names of histories")
    return name


class PartLicences(Section):
    """The licence of each part of a student, as SPDX names it, else by its own name; null: unknown."""

    text_encoder: str | None
    autoencoder: str | None
    transformer: str | None
    data: str | None


class Register(Section):
    """Stage register."""

    model_name: Annotated[str, AfterValidator(registrable)]
    licence: str  # as SPDX names it, else by its own name
    licence_link: str | None  # where the terms are of a licence that the Hugging Face hub has no field for
    part_licences: PartLicences
    description: str


S = TypeVar("S", bound=Section)
SECTIONS: dict[str, type[Section]] = {
    "trigflow": TrigFlow,
    "sampling": Sampling,
    "prepare": Prepare,
    "validate": Validate,
    "foundation": Foundation,
    "encode": Encode,
    "judge": Judge,
    "teacher": Teacher,
    "prune": Prune,
    "convert": Convert,
    "distill": Distill,
    "schedule": Schedule,
    "evaluate": Evaluate,
    "report": Report,
    "register": Register,
}


def profile(root: Path = Path()) -> str:
    """Returns the name of the profile in use, the key `profile` of params.yaml."""
    path = root / "params.yaml"
    name = read(path).get("profile")
    if not isinstance(name, str):
        raise ValueError(f"{path}: the key 'profile' must name a file of profiles/, got {name!r}")
    return name


def read(path: Path) -> dict[str, Any]:
    """Returns a YAML 1.2 mapping, as DVC reads it. Raises ValueError naming the file and the place."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; profiles there are: {known_profiles(path.parent)}")
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text())
    except YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
    return content


def known_profiles(folder: Path) -> list[str]:
    """Returns the names of the profiles in a folder."""
    return sorted(p.stem for p in folder.glob("*.yaml"))


def load(cls: type[S], root: Path = Path()) -> S:
    """Returns the section of class `cls` from the profile in use. Raises ValueError that names file and key."""
    name = next(key for key, value in SECTIONS.items() if value is cls)
    return parse(cls, name, root / "profiles" / f"{profile(root)}.yaml")


def parse(cls: type[S], name: str, path: Path) -> S:
    """Returns section `name` of a profile file as `cls`."""
    sections = read(path)
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise ValueError(f"{path}: unknown section {unknown}; sections are {sorted(SECTIONS)}")
    if name not in sections:
        raise ValueError(f"{path}: section '{name}' is missing")
    try:
        return cls.model_validate(sections[name])
    except ValidationError as error:
        raise ValueError(f"{path}: {faults(error, f'{name}.')}") from None


def faults(error: ValidationError, before: str = "") -> str:
    """Returns what is wrong in a content, key by key; `before` goes before each key."""
    return "; ".join(
        f"{before}{'.'.join(str(p) for p in e['loc'])}: "
        + ("missing" if e["type"] == "missing" else f"{e['msg']} (got {e['input']!r:.80})")
        for e in error.errors()
    )
