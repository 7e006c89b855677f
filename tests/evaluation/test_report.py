"""The page: opens offline, shows every size and picture, and says which combinations were held out."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sana_sprint import config, storage
from sana_sprint.evaluation import evaluate, pages, plots, protocol, report, report_schedule, report_tables


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
def data(report_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(report_data, tmp_path / "data")
    return tmp_path / "data"


def make(data, prompts=6, comparisons=(), made=()):
    params = config.Report(title="Tests & <pictures>", prompts=prompts)
    page, curves = data / "reports/index.html", data / "plots/curves"
    summary = report.run(params, data, page, curves, comparisons, dict(made))
    return summary, (data / "reports/index.html").read_text()


def test_the_page_opens_without_a_network(data):
    _, text = make(data)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe")
        for name in ("src", "srcset"):
            assert name not in attributes or re.match(r"data:image/(png|webp);base64,", attributes[name])
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import", text)
    assert "&lt;pictures&gt;" in text


def test_it_shows_every_picture_with_its_prompt_and_verdict(data, outcome):
    summary, text = make(data)
    page = Page(text)
    number = len(outcome.prompts)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert summary == {"sizes": 2, "pictures": number * 7, "curves": 1}
    assert len(images) == number * 7 + report.HERO * 4 + 8 + 1
    for kind in ("scores against", "score per task", "quality against", "search of the times"):
        assert [kind in attributes["alt"] for attributes in images].count(True) == 2
    assert all(attributes["alt"] for attributes in images)
    assert sum("wrong: no" in attributes["alt"] for attributes in images) > 10
    for size in ("small", "base"):
        assert page.text.count(size) > 3
    assert page.text.count("sees: ") == sum("data-right" in attributes for _, attributes in page.tags)


def test_pictures_are_those_that_were_scored(data, outcome):
    _, text = make(data)
    at = [a for tag, a in Page(text).tags if tag == "img" and a["alt"].startswith("base, 2 steps")]
    order = [prompt.caption for prompt in protocol.shown(outcome.prompts, evaluate.GALLERY)]
    assert [a["alt"].removeprefix("base, 2 steps: ").partition(" (")[0] for a in at[-len(order) :]] == order
    for place in (0, len(order) - 1):
        picture = Image.open(io.BytesIO(base64.b64decode(at[-len(order) :][place]["src"].partition(",")[2])))
        index = protocol.shown(outcome.prompts, evaluate.GALLERY)[place].index
        assert np.array_equal(np.asarray(picture.convert("RGB")), outcome.shown["student"]["2"][place]), index


def test_what_the_judge_saw_is_drawn_where_it_saw_it(data):
    path = data / "grids/base/verdicts.json"
    content = storage.read_json(path)
    first = content["gallery"][0]
    content["verdicts"]["student"]["1"][first] |= {"seen": [{"label": "red circle", "box": [8, 16, 40, 60]}]}
    storage.write_json(path, content)
    _, text = make(data)
    assert '<rect x="8" y="16" width="32" height="44"/>' in text
    assert 'viewBox="0 0 64 64"' in text
    assert "sees: red circle<" in text


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
    table = report_tables.matched("small", content)
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


def test_bars_hold_the_share_and_its_interval():
    assert report_tables.bar({"value": 0.5, "se": 0.1}) == {
        "value": 50,
        "low": 30.4,
        "high": 69.6,
        "text": "0.50 ± 0.10",
    }
    ends = report_tables.bar({"value": 0.98, "se": 0.02})
    assert (ends["low"], ends["high"]) == (94.1, 100)


def test_public_protocols_have_a_table_of_their_own(data):
    path = data / "metrics/evaluate/base.json"
    share = {"value": 0.72, "se": 0.01}
    scores = {"overall": share, "tasks": {"counting": {"value": 0.5, "se": 0.02, "n": 80}}, "categories": {}}
    one = {"protocol_digest": "f" * 64, "pictures": 2212, "scores": scores}
    storage.write_json(path, storage.read_json(path) | {"protocols": {"geneval": {"2": one}}})
    text = re.sub(r"\s+", " ", Page(make(data)[1]).text)
    assert "geneval, protocol ffffffffffff" in text
    for words in ("0.720 ± 0.010", "0.500 ± 0.020"):
        assert words in text


def a_schedule(shared):
    """What stage schedule writes, as far as the page shows it."""
    gains = {
        name: {"value": value, "se": 0.02} for name, value in (("found", 0.52), ("baseline", 0.48), ("gain", 0.04))
    }
    return {
        "times": {"1": [1.57, 0.0], "2": [1.5, 0.9, 0.0], "3": [1.5, 0.9, 0.4, 0.0]},
        "found": {"1": [1.5, 0.0], "2": [1.5, 0.9, 0.0], "3": [1.5, 0.9, 0.4, 0.0]},
        "profile": {"1": [1.57, 0.0], "2": [1.57, 1.1, 0.0], "3": [1.57, 1.0, 0.5, 0.0]},
        "baseline": {"1": [1.57, 0.0], "2": [1.5683, 1.3, 0.0]},
        "measure": "overall",
        "captions": {"tried": 213, "checked": 147, "in_both": 3, "shared_with_evaluate": shared},
        "gains": {"1": gains, "2": gains, "3": {"found": gains["found"]}},
        "protocol_digest": "e" * 64,
    }


def test_times_that_were_found_stand_beside_the_baselines_with_their_gain(data):
    assert "Times of the steps" not in make(data)[1]
    storage.write_json(data / "models/schedule/base.json", a_schedule(12))
    page = Page(make(data)[1])
    assert "Times, base" in {a.get("aria-label") for _, a in page.tags}
    assert "Times, small" not in {a.get("aria-label") for _, a in page.tags}
    (words,) = [line for line in page.text.splitlines() if "prompts of the training split" in line]
    assert "Sought on 213 prompts of the training split and compared on 147 others (3 captions are in both)" in words
    assert "12 of the training split's captions are evaluate's as well" in words
    assert words.endswith("Protocol of the search: eeeeeeeeeeee.")
    table, scores = report_schedule.schedule("base", a_schedule(0)), ["0.520 ± 0.020", "-", "0.480 ± 0.020"]
    assert table["rows"] == [
        ["1", "1.5", "1.57", "1.57", *scores, "+0.040 ± 0.020", "profile"],
        ["2", "1.5, 0.9", "1.57, 1.1", "1.5683, 1.3", *scores, "+0.040 ± 0.020", "found"],
        ["3", "1.5, 0.9, 0.4", "1.57, 1, 0.5", "-", "0.520 ± 0.020", "-", "-", "-", "found"],
    ]
    assert "None of their captions is evaluate's." in table["words"]


def ablation_words(data, rows):
    storage.write_json(data / "reports/ablation/table.json", rows)
    return report_tables.ablation(data / "reports/ablation/table.json")["words"]


def test_champion_and_ablation_stand_in_the_page_where_there_are_any(data):
    _, text = make(data)
    assert "Against the champion" not in text
    assert "Ablation" not in text
    scores = {"1": {"value": 0.5, "se": 0.02}}
    rows = [
        {"variant": "sprint", "seeds": 3, "ill": 0, "scores": scores, "gains": {"1": {"value": 0.0, "se": 0.0}}}
        | {"protocol_digest": "a" * 64},
        {"variant": "scm", "seeds": 1, "ill": 1, "scores": {"1": None}, "gains": {"1": None}},
        {"variant": "long", "seeds": 1, "ill": 0, "scores": scores, "gains": {"1": {"value": 0.04, "se": None}}},
    ]
    assert "may not compare" in ablation_words(data, rows)
    rows[2]["protocol_digest"] = "a" * 64
    assert ablation_words(data, rows) == "Protocol aaaaaaaaaaaa."
    curves = {"sprint": {"score/1_step": [[4, 0.2], [8, 0.4]]}}
    plots.compared(curves, curves["sprint"], data / "reports/ablation/curves.png")
    champion = {"title": "base against m-base version 3", "words": "One protocol.", "head": ["steps"], "rows": [["1"]]}
    page = Page(make(data, comparisons=[champion])[1])
    for words in ("base against m-base version 3", "sprint300.500 ± 0.020", "+0.040"):
        assert words in re.sub(r"\s+", " ", page.text).replace(" 3 0 ", "30") or words in page.text
    assert {a.get("aria-label") for _, a in page.tags} >= {"base against m-base version 3", "Ablation"}
    (picture,) = [a["src"] for tag, a in page.tags if tag == "img" and "every variant" in a["alt"]]
    assert picture == pages.embedded(data / "reports/ablation/curves.png")


def test_the_foot_tells_weights_data_and_protocol_by_digest(data, outcome):
    made = {
        "data/models/teacher": "7e" * 16 + ".dir",
        "data/latents": "1a" * 16 + ".dir",
        "data/metrics/judge.json": "0",
    }
    made |= {f"data/models/student/{size}": f"{size:x>32}" for size in ("small", "base")}
    text = make(data, made=made)[1]
    foot = dict(re.findall("<dt>(.+?)</dt><dd>(.*?)</dd>", text[text.index("Protocol and lineage</h2>") :]))
    for path in set(made) - {"data/metrics/judge.json"}:
        assert foot[f"{path}, md5"] == made[path]
    for size in ("small", "base"):
        assert foot[f"protocol sha256, {size}"] == outcome.result["protocol_digest"]
    assert "data/metrics/judge.json, md5" not in foot
    assert "git commit" in foot


def test_sizes_under_two_protocols_are_never_side_by_side_without_a_word(data):
    told = "differences between the sizes are not those of students alone"
    assert told not in make(data)[1]
    path = data / "metrics/evaluate/base.json"
    storage.write_json(path, storage.read_json(path) | {"protocol_digest": "ab" * 32})
    text = make(data)[1]
    assert text.count(told) == 2  # with the headline, and with the tables of scores
    assert "base abababababab" in text[: text.index("<nav")]


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
