"""What GenEval's judge saw of a student in `dvc repro`: kept by evaluate, made a page by report, read in a browser."""

import re
import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from sana_sprint import config, storage
from sana_sprint.evaluation import folder_page, folder_student, report
from tests.evaluation.test_folder_scores import protocol_file, root
from tests.evaluation.test_report_browser import DESKTOP, PHONE, RULES, browser

__all__ = ["browser", "root"]


@pytest.fixture(scope="module")
def looked(root, sprint_folder, tmp_path_factory):
    """What evaluate scores and keeps of a student, at two step counts."""
    place = tmp_path_factory.mktemp("evaluate")
    file = protocol_file(place, kind="geneval").rename(place / "geneval.yaml")
    return folder_student.run([file], sprint_folder, place / "cache", root, "base")


@pytest.fixture(scope="module")
def data(looked, report_data, tmp_path_factory):
    """The data of a repository after evaluate and report."""
    data = tmp_path_factory.mktemp("a repository") / "data"
    shutil.copytree(report_data, data)
    found, seen = looked
    folder_student.keep(seen, data / "grids/base/protocols")
    path = data / "metrics/evaluate/base.json"
    storage.write_json(path, storage.read_json(path) | {"protocols": found})
    report.run(config.Report(title="T", prompts=6), data, data / "reports/index.html", data / "plots/curves")
    return data


def test_every_picture_that_was_judged_stands_in_a_page_of_its_step_count(data, looked):
    _, seen = looked
    pages = data / "reports/protocols"
    assert sorted(page.name for page in pages.iterdir()) == ["base-geneval-1.html", "base-geneval-2.html"]
    for one, page in zip(seen, sorted(pages.iterdir()), strict=True):
        text, lines = page.read_text(), one.scored["looked"]
        sources = re.findall(r'<img [^>]*src="([^"]+)"', text)
        assert [source.rpartition("pictures/")[2] for source in sources] == [
            line["picture"].replace(".png", ".webp") for line in lines
        ]
        assert len(sources) == 6
        for source, line in zip(sources, lines, strict=True):
            drawn, tile = Image.open(one.pictures / line["picture"]), Image.open(pages / source)
            assert np.array_equal(tile.convert("RGB"), drawn)
        assert text.count("<rect ") == sum(len(line["seen"]) for line in lines) > 0
        assert text.count('class="wrong"') == sum(not line["right"] for line in lines) == 4
        assert (data / f"grids/base/protocols/{one.name}/results.jsonl").read_text().count("\n") == 6


def test_the_report_names_the_pages_and_without_any_their_folder_is_empty(data, tmp_path):
    text = (data / "reports/index.html").read_text()
    assert "protocols/base-geneval-1.html, protocols/base-geneval-2.html, in the folder of this page" in text
    assert folder_page.of_students(tmp_path / "no grids", tmp_path / "protocols") == []
    assert list((tmp_path / "protocols").iterdir()) == []  # DVC asks for an output that is there


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_boxes_reasons_and_filter_work_in_a_browser_that_asks_for_nothing_but_tiles(data, looked, browser, viewport):
    said, asked = [], []
    page = browser.new_page(viewport=viewport, color_scheme="light" if viewport == DESKTOP else "dark")
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url))
    page.goto((data / "reports/protocols/base-geneval-1.html").as_uri())
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    boxes = page.locator(".card svg.seen")
    assert boxes.locator("visible=true").count() == 0
    page.get_by_label("What the judge saw").check()
    lines = looked[1][0].scored["looked"]
    assert boxes.locator("visible=true").count() == boxes.count() == sum(bool(line["seen"]) for line in lines) > 0
    picture, rect = (page.locator(f".card figure:visible {tag}").first.bounding_box() for tag in ("img", "rect"))
    left, top, right, _ = lines[0]["seen"][0]["box"]
    assert rect["x"] - picture["x"] == pytest.approx(picture["width"] * left / 64, abs=3)
    assert rect["y"] - picture["y"] == pytest.approx(picture["width"] * top / 64, abs=3)
    assert rect["width"] == pytest.approx(picture["width"] * (right - left) / 64, abs=4)
    page.get_by_label("Verdict").select_option("no")
    reasons = page.locator(".card:visible .wrong").all_inner_texts()
    assert reasons == [f"✗ {line['reason']}" for line in lines if not line["right"]]
    page.get_by_role("combobox", name="Task").select_option("counting")
    assert page.locator(".card:visible h3").all_inner_texts() == ["a photo of two dogscounting"]
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    assert (said, len(asked)) == ([], 7)
    assert all(url.startswith(data.as_uri()) for url in asked)
    page.close()


def test_without_scripts_every_box_and_reason_is_there(data, browser):
    context = browser.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto((data / "reports/protocols/base-geneval-2.html").as_uri())
    assert page.locator("#controls").is_hidden()
    assert page.locator(".card svg.seen:visible").count() == page.locator(".card svg").count() > 0
    assert page.locator(".card span.seen:visible").count() == 6
    assert page.locator(".card .wrong:visible").count() == 4
    context.close()
