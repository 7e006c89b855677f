"""The model card as the Hugging Face hub reads it: its licence, and energy where it was measured."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from sana_sprint import config
from sana_sprint.registry import card, measured
from tests.registry.conftest import ROOT, evaluation, student

LINK = "https://terms.example/own"
SPENT = {"1": {"energy_j": 36.0}, "4": {"energy_j": 90.0}}


def parsed(made):
    return ModelCard(card.write(made)).data.to_dict()


@pytest.fixture(autouse=True)
def no_grid(monkeypatch):
    monkeypatch.delenv("SANA_SPRINT_GRID_G_PER_KWH", raising=False)


def test_a_licence_of_the_hub_is_named_by_its_identifier():
    made = student(evaluation(0.4, 0.6))
    for licence in ("Apache-2.0", "BSD-3-Clause", "CC0-1.0"):
        found = parsed(replace(made, licence=licence, licence_link=LINK))
        assert found["license"] == licence.lower()
        assert "license_name" not in found


def test_another_licence_stands_with_its_own_name_and_a_link_to_its_terms():
    found = parsed(replace(student(evaluation(0.4, 0.6)), licence="My Licence v2", licence_link=LINK))
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "my-licence-v2", LINK)


@pytest.mark.parametrize(
    ("licence", "link", "told"),
    [
        ("other", LINK, "names none: give its own name"),
        ("My Licence", None, "give where its terms are as licence_link"),
    ],
)
def test_a_licence_that_cannot_be_looked_up_is_refused(licence, link, told):
    with pytest.raises(ValueError, match=told):
        card.write(replace(student(evaluation(0.4, 0.6)), licence=licence, licence_link=link))


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_every_profile_names_a_licence_that_can_be_looked_up(profile, tmp_path):
    (tmp_path / "params.yaml").write_text(f"profile: {profile}\n")
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    params = config.load(config.Register, tmp_path)
    assert card.licence_lines(params.licence, params.licence_link)


def test_energy_that_was_not_measured_is_not_told(monkeypatch):
    monkeypatch.setenv("SANA_SPRINT_GRID_G_PER_KWH", "400")
    text = card.write(student(evaluation(0.4, 0.6)))
    assert "## Energy" not in text
    assert "co2" not in text.lower()


def test_energy_is_told_in_joules_and_as_emissions_only_where_the_grid_is_known(monkeypatch):
    measuring = evaluation(0.4, 0.6) | {"latency": {"student": SPENT}, "machine": {"gpu": "a GPU", "cpu": "a CPU"}}
    text = card.write(student(measuring))
    assert "counter (a GPU)" in text
    assert "- in 1 step: 36 J\n- in 4 steps: 90 J\n" in text
    assert "co2" not in text.lower()
    assert "Energy" in measured.card_fields(text)
    monkeypatch.setenv("SANA_SPRINT_GRID_G_PER_KWH", "400")
    text = card.write(student(measuring))
    assert "- in 4 steps: 90 J, 0.01 g CO2eq at 400 g/kWh" in text  # 25 mWh
    told = ModelCard(text).data.to_dict()["co2_eq_emissions"]
    assert told["emissions"] == pytest.approx(0.01)
    assert told["hardware_used"] == "a GPU"
    assert "training is not in it" in told["source"]
    assert "co2_eq_emissions" in measured.card_fields(text)


@pytest.mark.parametrize("text", ["much", "-1", "0", "nan", "inf"])
def test_a_grid_that_is_no_number_is_told(monkeypatch, text):
    monkeypatch.setenv("SANA_SPRINT_GRID_G_PER_KWH", text)
    with pytest.raises(ValueError, match="SANA_SPRINT_GRID_G_PER_KWH is"):
        card.write(student(evaluation(0.4, 0.6)))


def test_the_licence_of_each_part_is_told_and_what_is_unknown_is_told_to_be():
    made = student(evaluation(0.4, 0.6))
    text = card.write(made)
    told = text.split("## Licences\n")[1].split("\n## ")[0]
    rows = [line for line in told.splitlines() if line.startswith("| ") and "---" not in line]
    assert rows[1:] == [
        "| text encoder | gemma |",
        "| autoencoder | unknown |",
        "| transformer | Apache-2.0 |",
        "| data | CC0-1.0 |",
    ]
    assert "Licences" in measured.card_fields(text)
    none = made.part_licences.model_copy(update=dict.fromkeys(config.PartLicences.model_fields))
    assert "Licences" not in measured.card_fields(card.write(replace(made, part_licences=none)))


def test_scores_under_public_protocols_stand_in_the_card_with_their_digest():
    told = evaluation(0.4, 0.6)
    one = {"overall": {"value": 0.7, "se": 0.01}, "tasks": {"position": {"value": 0.5, "se": 0.03, "n": 80}}}
    told["protocols"] = {"geneval": {"2": {"protocol_digest": "abcdef0123456789", "scores": one}}}
    text = card.write(student(told))
    assert "| geneval | abcdef012345 | 2 | overall | 0.700 ± 0.010 |" in text
    assert "| geneval | abcdef012345 | 2 | position | 0.500 ± 0.030 |" in text
    assert "public protocols" not in card.write(student(evaluation(0.4, 0.6)))


def test_the_card_of_a_student_made_elsewhere_claims_nothing_of_how_it_was_made():
    here = student(evaluation(0.4, 0.6))
    there = replace(here, made={"made": "elsewhere", "registered_by": "anna"})
    claims = ("sCM", "LADD", card.PAPER, "captions of its corpus", "from a SANA teacher")
    assert all(claim in " ".join(card.write(here).split()) for claim in claims)
    text = " ".join(card.write(there).split())
    assert not [claim for claim in claims if claim in text]
    assert "by which method, from which teacher, on which data and at what cost is unknown here" in text
    assert "Which captions it knows is unknown here" in text
    assert {"Data", "Training"} & set(measured.card_fields(card.write(there))) == set()
    told = card.write(replace(there, told={"Data": "CC12M", "Training": "LADD, 20,000 iterations"}))
    assert "## Data\n\nCC12M\n\n## Training\n\nLADD, 20,000 iterations\n" in told
    assert {"Data", "Training"} < set(measured.card_fields(told))
