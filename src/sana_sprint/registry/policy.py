"""mlflow/promotion.yaml, the policy of promotion: strict, without defaults, so that what is not asked is seen to be
so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from sana_sprint import config

if TYPE_CHECKING:
    from pathlib import Path

STEPS = Literal["1", "2", "3", "4"]
JUDGES = Literal["scenes", "classes", "geneval", "none"]


class Margin(config.Section):
    """A metric against the champion's: at most `margin_se` standard errors of the difference worse."""

    better: Literal["higher", "lower"]
    margin_se: config.Weight


class TaskMargin(config.Section):
    """The score of every task against the champion's."""

    margin_se: config.Weight


class AgainstChampion(config.Section):
    """Gates against the champion, at each of `steps`. Times are compared where one machine took both; `other_machine`
    says what becomes of the rest. Size and time are at most so many times the champion's; null: not asked."""

    steps: list[STEPS] = Field(min_length=1)
    metrics: dict[str, Margin]
    tasks: TaskMargin | None
    latency_times: config.Scale | None
    other_machine: Literal["refuse", "waive"]
    size_times: config.Scale | None


class Judged(config.Section):
    """What is asked of versions that one kind of judge has scored: by metric and step count the least values, the
    greatest ones, and where the student must beat the undistilled; p50 seconds of one picture by step count; MB (10^6
    bytes) of the folder."""

    floors: dict[str, dict[STEPS, float]]
    ceilings: dict[str, dict[STEPS, float]]
    beats_undistilled: dict[str, list[STEPS]]
    latency_s: dict[STEPS, config.Scale]
    size_mb: config.Scale | None
    champion: AgainstChampion


class Policy(config.Section):
    """The whole file: gates by kind of judge, and what holds for every version: the fields of the model card that must
    be filled, keys of its header or titles of its sections, and the licences that may be promoted."""

    judges: dict[JUDGES, Judged]
    card: list[str]
    licences: list[str] = Field(min_length=1)


def load(path: Path) -> Policy:
    """Returns the policy of a file. Raises ValueError that names file and key."""
    try:
        found: Policy = Policy.model_validate(config.read(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {config.faults(error)}") from None
    return found
