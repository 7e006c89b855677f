"""Quick scores of a network in memory."""

import pytest

from sana_sprint.evaluation import quick
from sana_sprint.models import bundle
from tests.evaluation.conftest import EVALUATE, SAMPLING


@pytest.fixture
def scorer(teacher_folder, raw, judge):
    """Makes scorers by kind of judge, which count the passes of the network that they score."""

    def made(kind: str) -> tuple[quick.Score, list[int]]:
        params = EVALUATE.model_copy(update={"judge": kind})
        score, passes = quick.Score(params, SAMPLING, 0.5, teacher_folder, raw, judge, 6), []
        network = bundle.load_transformer(teacher_folder)
        network.register_forward_hook(lambda *_: passes.append(1))
        score.network = network
        return score, passes

    return made


def test_a_score_is_the_share_of_pictures_that_the_judge_finds_right_and_rest_changes_nothing(scorer):
    score, passes = scorer("scenes")
    first = score.of_teacher(score.network)
    assert len(score.prompts) == 6
    assert 0 <= first["overall"] <= 1
    assert len(passes) == SAMPLING.teacher_steps * 2  # two batches of up to five
    score.rest()
    assert score.of_teacher(score.network) == first


def test_without_verdicts_nothing_is_drawn(scorer):
    score, passes = scorer("none")
    assert score.of_teacher(score.network) == {}
    assert passes == []
