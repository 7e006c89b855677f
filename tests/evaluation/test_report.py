"""The page: opens offline, shows every size and picture, and says which combinations were held out."""

import base64
import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from sana_sprint import config, storage
from sana_sprint.evaluation import evaluate, pages, plots, report


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def data(outcome, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    for size in ("small", "base"):
        own = copy.copy(outcome)
        own.result = json.loads(json.dumps(outcome.result)) | {"size": size}
        evaluate.write_grids(own, folder / "grids" / size)
        storage.write_json(folder / f"metrics/evaluate/{size}.json", own.result)
        plots.scores(own.result, folder / f"plots/scores-{size}.png")
        plots.tasks(own.result, folder / f"plots/tasks-{size}.png")
        plots.pareto(own.result, folder / f"plots/pareto-{size}.png")
    storage.write_json(folder / "metrics/teacher.json", {"loss": 0.25, "score": {"overall": 0.7}})
    curves = {"loss": [[k, 1 / k] for k in range(1, 200)], "grad_norm": [[10, 1.0], [20, 0.5]], "none": []}
    storage.write_json(folder / "metrics/curves/distill-small.json", curves)
    return folder


def make(data, prompts=6):
    params = config.Report(title="Tests & <pictures>", prompts=prompts)
    summary = report.run(params, data, data / "reports/index.html", data / "plots/curves")
    return summary, (data / "reports/index.html").read_text()


def test_the_page_opens_without_a_network_or_scripts(data):
    _, text = make(data)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "srcset"):
            assert name not in attributes or attributes[name].startswith("data:image/png;base64,")
    assert not re.search(r"https?://|url\(|@import", text)
    assert "&lt;pictures&gt;" in text


def test_it_shows_every_picture_with_its_prompt_and_verdict(data):
    summary, text = make(data)
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert summary == {"sizes": 2, "pictures": 6 * 7, "curves": 1}
    assert len(images) == 6 * 7 + 6 + 1
    assert all(attributes["alt"] for attributes in images)
    assert sum("wrong: no" in attributes["alt"] for attributes in images) > 10
    first = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].partition(",")[2])))
    assert first.size == (64, 64)
    for size in ("small", "base"):
        assert page.text.count(size) > 3


def test_heldout_scores_and_errors_are_told_apart(data):
    _, text = make(data)
    page = Page(text)
    assert "combination never trained on" in page.text
    assert "Seen and held-out combinations, on the same tasks" in page.text
    assert "held out" in page.text
    assert re.search(r"\d\.\d+ ± \d\.\d+", page.text)


def test_seen_and_heldout_are_compared_on_the_same_tasks():
    pairs = [("counting", "seen"), ("counting", "heldout"), ("position", "seen"), ("position", "seen")]
    prompts = [{"task": task, "group": group} for task, group in pairs]
    verdicts = [{"right": right, "reason": ""} for right in (True, False, False, False)]
    content = {"prompts": prompts, "verdicts": {"student": {"1": verdicts}}}
    table = report.matched("small", content)
    assert table["tasks"] == ["counting"]
    assert [value.split(" ")[0] for value in table["rows"][0][2:]] == ["1.000", "0.000"]


def test_the_same_input_gives_the_same_page(data):
    assert make(data)[1] == make(data)[1]
    assert [p.name for p in (data / "plots/curves").iterdir()] == ["distill-small.png"]


def test_a_profile_without_verdicts_has_a_page_too(data):
    for size in ("small", "base"):
        path = data / f"metrics/evaluate/{size}.json"
        result = storage.read_json(path)
        for by_steps in result["scores"].values():
            for score in by_steps.values():
                for name in ("overall", "tasks", "seen", "heldout"):
                    del score[name]
        storage.write_json(path, result)
        path = data / "grids" / size / "verdicts.json"
        content = storage.read_json(path)
        content["verdicts"] = {m: {k: [] for k in by} for m, by in content["verdicts"].items()}
        storage.write_json(path, content)
    _, text = make(data)
    assert "CLIP score" in text
    assert "Tasks</h2>" not in text


def test_without_scores_it_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="dvc repro evaluate"):
        report.run(config.Report(title="t", prompts=1), tmp_path, tmp_path / "x.html", tmp_path / "curves")


def test_the_page_of_an_experiment_holds_its_tables_and_plots_and_escapes_them(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "curve.png")
    sizes = "| size | 1 < 2 |\n|---|---|\n| base | -0.1 |\n"
    words = f"{sizes}\nteacher: 0.8\n\n| fine-tune | loss |\n|---|---|\n| staged | 2 |\n"
    pages.write_experiment(tmp_path / "index.html", "Title", "What it is.", words, [tmp_path / "curve.png"])
    page = (tmp_path / "index.html").read_text()
    assert page.count("<table>") == 2
    for cell in (
        '<th scope="col">1 &lt; 2</th>',
        "<td>base</td><td>-0.1</td>",
        "<h2>fine-tune</h2>",
        "<td>staged</td>",
    ):
        assert cell in page
    assert page.count("data:image/png;base64,") == 1
    assert "<h1>Title</h1>" in page
    assert "teacher: 0.8" not in page
