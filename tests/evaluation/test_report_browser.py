"""The report in a real browser: no error, no request, its filter and slider, readable by machines, at two widths."""

import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from sana_sprint import config, storage
from sana_sprint.evaluation import comparison, report, report_gallery
from tests.evaluation import test_report

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    assert program, "no Chromium on the PATH: apt install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(report_data, tmp_path_factory):
    """The page of the shared outcome, in which the judge saw something, and a champion is compared with."""
    data = tmp_path_factory.mktemp("browser") / "data"
    shutil.copytree(report_data, data)
    path = data / "grids/base/verdicts.json"
    content = storage.read_json(path)
    for number, verdict in enumerate(content["verdicts"]["student"]["1"]):
        seen = [{"label": "red circle", "box": [8, 16, 40, 60]}]
        verdict.update(right=number % 3 == 0, reason="" if number % 3 == 0 else "no heron", seen=seen)
    storage.write_json(path, content)
    storage.write_json(data / "models/schedule/base.json", test_report.a_schedule(12))
    champion = {"title": "base against m-base 3", "words": "One protocol.", "head": ["steps"], "rows": [["1"]]}
    params = config.Report(title="Tests", prompts=6)
    report.run(params, data, data / "reports/index.html", data / "plots/curves", [champion])
    return data / "reports/index.html"


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, page_file):
    """The open page; afterwards no error must have stood in its console and nothing been asked for."""
    said, asked = [], []
    page = browser.new_page(viewport=request.param)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url))
    page.goto(page_file.as_uri())
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", page_file.as_uri()))] == []
    page.close()


def shown(page):
    return page.locator(".card:visible").count()


def test_the_filter_shows_what_is_asked_for(page, outcome):
    number = len(outcome.prompts)
    assert shown(page) == number
    page.get_by_label("Search").fill("HERON")
    wrong = shown(page)
    assert wrong == sum(number % 3 > 0 for number in range(number))
    assert page.locator("#count").inner_text() == f"{wrong} of {number} shown"
    page.get_by_label("Search").fill("no such words anywhere")
    assert shown(page) == 0
    page.get_by_label("Search").fill("")
    page.get_by_role("combobox", name="Task").select_option("counting")
    counting = sum(prompt.task == "counting" for prompt in outcome.prompts)
    assert shown(page) == counting
    page.get_by_role("combobox", name="Task").select_option("")
    page.get_by_label("Picture").select_option("base, 1 step")
    assert page.locator(".card figure:visible").count() == number
    page.get_by_label("Verdict").select_option("yes")
    assert shown(page) == number - wrong
    page.get_by_label("Verdict").select_option("no")
    assert shown(page) == wrong


def test_what_the_judge_saw_shows_when_asked_for(page):
    page.get_by_label("Picture").select_option("base, 1 step")
    boxes = page.locator(".card svg.seen")
    assert boxes.locator("visible=true").count() == 0
    page.get_by_label("What the judge saw").check()
    assert boxes.locator("visible=true").count() == shown(page)
    picture, box = (page.locator(f".card figure:visible {tag}").first.bounding_box() for tag in ("img", "rect"))
    assert box["x"] - picture["x"] == pytest.approx(picture["width"] * 8 / 64, abs=3)
    assert box["height"] == pytest.approx(picture["height"] * 44 / 64, abs=4)
    assert "sees: red circle" in page.locator(".card figure:visible figcaption").first.inner_text()


def test_the_slider_goes_from_the_teacher_to_one_step(page):
    slider, figures = page.get_by_label("From the teacher to one step of base"), page.locator("#hero figure")
    told = []
    for place in range(4):
        slider.fill(str(place))
        shown_now = page.locator("#hero img:visible")
        assert shown_now.count() == figures.count() == report.HERO
        told.append(shown_now.first.get_attribute("alt").partition(":")[0])
        assert page.locator("#steps-told").inner_text() == told[-1]
    assert told == ["teacher, 3 steps", "base, 4 steps", "base, 2 steps", "base, 1 step"]
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#steps-told").inner_text() == "base, 2 steps"


def test_nothing_runs_off_the_side_and_every_picture_is_drawn(page):
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].filter(image => image.naturalWidth === 0).length") == 0


def test_it_passes_the_accessibility_check(page):
    page.emulate_media(color_scheme="light" if page.viewport_size == DESKTOP else "dark")
    page.get_by_label("What the judge saw").check()
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    assert {"color-contrast", "image-alt", "label"} <= {rule["id"] for rule in found.response["passes"]}


def test_without_scripts_pictures_scores_and_verdicts_are_there(browser, page_file, outcome):
    context = browser.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".card figure:visible").count() == 7 * len(outcome.prompts)
    assert page.locator("#controls").is_hidden()
    assert page.locator("#slide").is_hidden()
    assert page.locator("#hero img:visible").count() == report.HERO
    assert page.get_by_text("no heron").count() > 1
    assert page.locator(".card svg.seen:visible").count() == page.locator(".card svg").count() >= len(outcome.prompts)
    assert page.locator(".card span.seen:visible").count() == 7 * len(outcome.prompts)
    context.close()


def test_it_prints_the_first_pictures_and_no_controls(browser, page_file):
    page = browser.new_page(viewport=DESKTOP)
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    assert shown(page) == 6
    assert page.locator("#controls").is_hidden()
    assert page.pdf().startswith(b"%PDF")
    page.close()


def test_the_page_of_two_students_filters_too_and_passes_the_accessibility_check(browser, report_data, tmp_path):
    results = [storage.read_json(report_data / f"metrics/evaluate/{size}.json") for size in ("small", "base")]
    grids = [report_gallery.read(report_data / "grids" / size) for size in ("small", "base")]
    table = {"head": ["network", "steps"], "rows": [["student", "1"]]}
    scores = [(grid.name, result["scores"]) for grid, result in zip(grids, results, strict=True)]
    comparison.write(tmp_path / "two.html", "One protocol.", table, scores, grids)
    page = browser.new_page(viewport=PHONE)
    page.goto((tmp_path / "two.html").as_uri())
    assert page.get_by_role("heading", name="small against base").count() == 1
    page.get_by_label("Picture").select_option("base, 2 steps")
    assert page.locator(".card figure:visible").count() == shown(page) == len(grids[0].content["gallery"])
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    page.close()
