"""`mlflow ui` over the smoke run in a real browser: pages load, pictures are seen, links lead on, students compare."""

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests import dashboard
from tests.e2e.clone import SIZES

pytestmark = pytest.mark.e2e
COLOURS_MIN = 500  # a blank page has 1, the three pictures 1400 to 1900


@pytest.fixture(scope="module")
def shown(finished):
    with dashboard.dashboard(f"sqlite:///{finished.clone.root}/data/mlflow/mlflow.db", "sana-sprint-smoke") as found:
        yield found
        assert found.faults == []


def test_the_first_page_is_of_training_and_lists_the_command(shown, finished):
    shown.open(f"#/experiments/{shown.experiment_id}")
    name = shown.runs("tags.kind = 'parent'")[-1].info.run_name
    assert name.endswith(" make demo")
    expect(shown.page.get_by_role("link", name=name)).to_be_visible()
    expect(shown.page.get_by_text("students compared")).to_be_attached()


def photographed(file):
    """Checks a screenshot: of the window's size, and not blank, as a page that has not come yet is."""
    with Image.open(file) as found:
        assert (found.format, found.size) == ("PNG", (dashboard.SIZE["width"], dashboard.SIZE["height"]))
        colours = found.convert("RGB").getcolors(found.width * found.height)
    assert len(colours) > COLOURS_MIN
    return len(colours)


def test_the_command_s_page_leads_to_its_stages_and_its_report(shown, tmp_path):
    dashboard.of_command(shown, "make demo", tmp_path)
    photographed(tmp_path / "mlflow-command.png")
    for stage in ("01 prepare", "09 distill base", "13 register small"):
        expect(shown.page.get_by_role("cell", name=stage)).to_be_attached()
    with shown.follow("report") as page:
        expect(page.get_by_role("heading", name="12 report")).to_be_visible()
        expect(page.frame_locator("iframe").first.get_by_role("heading", level=1)).to_contain_text("smoke")


@pytest.mark.parametrize("size", SIZES)
def test_a_slider_leads_through_the_pictures_over_the_iterations(shown, size, tmp_path):
    seen = dashboard.of_pictures(shown, "make demo", f"distill_{size}/1_step", tmp_path)
    assert len(set(seen)) == 3  # iterations 0, 6 and 12
    photographed(tmp_path / "mlflow-pictures.png")


def test_a_slider_leads_from_the_teacher_to_four_steps(shown):
    assert len(set(shown.pictures("make demo", "evaluate_base/0_is_the_teacher"))) == 5


def test_two_students_are_compared_in_one_chart(shown, tmp_path):
    dashboard.of_students(shown, tmp_path)
    photographed(tmp_path / "mlflow-students.png")
    for size in SIZES:
        expect(shown.page.get_by_role("link", name=f"11 evaluate {size}").first).to_be_visible()
    shown.command("make demo")
    with shown.follow("its students compared") as page:
        expect(page.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment")).to_be_visible()
        expect(page.get_by_role("link", name="by_steps/student_overall", exact=True)).to_be_attached()


def test_a_stage_s_page_tells_its_data_by_digest_and_the_machine_s_load(shown):
    (run,) = shown.runs("tags.stage = 'distill' and tags.size = 'base'")[:1]
    place = f"#/experiments/{shown.experiment_id}/runs/{run.info.run_id}"
    shown.open(place)
    (data,) = [one.dataset for one in run.inputs.dataset_inputs if one.dataset.name == "data/latents"]
    expect(shown.page.get_by_text(f"data/latents ({data.digest})")).to_be_visible()
    shown.open(f"{place}/system-metrics")
    expect(shown.page.get_by_text("cpu_utilization_percentage").first).to_be_visible()


def test_a_version_s_page_tells_its_scores_and_where_it_comes_from(shown):
    shown.open("#/models/sana-sprint-smoke-base/versions/1")
    expect(shown.page.get_by_role("columnheader", name="clip_score")).to_be_visible()
    with shown.follow("registered by") as page:
        expect(page.get_by_role("heading", name="13 register base")).to_be_visible()
