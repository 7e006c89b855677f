import json
from dataclasses import replace
from pathlib import Path

import pytest
from samples import folder_of, png_bytes

from sana_sprint import config, storage
from sana_sprint.data import checks, manifest, prepare

SUITES = Path(__file__).parents[2] / "profiles" / "suites"


def validate(suite: str, quarantine_share_max: float = 0.01) -> config.Validate:
    return config.Validate(suite=suite, quarantine_share_max=quarantine_share_max)


def with_rows(raw: Path, folder: Path, change) -> Path:
    """data/raw whose manifest is `change` of the rows of another."""
    folder.mkdir()
    manifest.write(folder, change(manifest.read(raw)), [])
    return folder


def first(which: str, **values):
    """A change of the first row of a split."""

    def change(rows):
        index = next(i for i, row in enumerate(rows) if row.split == which)
        return [*rows[:index], replace(rows[index], **values), *rows[index + 1 :]]

    return change


def broken(raw: Path, suite: str, out: Path) -> list[checks.Verdict]:
    return checks.run(validate(suite), raw, SUITES, out).broken


def test_good_scenes_pass(scenes_raw, tmp_path):
    report = checks.run(validate("scenes"), scenes_raw, SUITES, tmp_path / "validation")
    assert report.broken == []
    assert report.metrics() == {"rows": 96, "rules": 18, "broken": 0, "warnings": 0}
    report.require()


def test_a_good_folder_passes(tmp_path, own):
    prepare.run(own, folder_of(tmp_path / "source"), tmp_path / "raw")
    checks.run(validate("folder"), tmp_path / "raw", SUITES, tmp_path / "out").require()


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("key", first("train", key="train-000001")),
        ("oblong_px", first("train", width=33)),
        ("size", first("train", width=64, height=64)),
        ("caption_length", first("train", caption_length=3)),
        ("caption", first("train", caption="A red circle!")),
        ("sha256", first("train", sha256="0" * 63)),
        ("phash", first("train", phash="xyz")),
        ("split", first("train", split="test")),
        ("group", first("train", group="other")),
        ("task", first("train", task="colour")),
        ("split", lambda rows: [row for row in rows if row.split == "train"]),
        ("", lambda rows: [rows[0], *[row for row in rows if row.split == "train"][:2]]),
    ],
)
def test_a_bad_row_breaks_the_rule_of_its_column(scenes_raw, tmp_path, column, change):
    raw = with_rows(scenes_raw, tmp_path / "raw", change)
    assert column in [verdict.column for verdict in broken(raw, "scenes", tmp_path / "out")]


def test_a_picture_in_both_splits_is_found(scenes_raw, tmp_path):
    shown = next(row.sha256 for row in manifest.read(scenes_raw, "eval"))
    raw = with_rows(scenes_raw, tmp_path / "raw", first("train", sha256=shown))
    (verdict,) = broken(raw, "scenes", tmp_path / "out")
    assert (verdict.column, verdict.count, verdict.examples) == ("also_in_eval", 1, ("train-000000",))


def test_a_held_out_pair_in_training_is_found(scenes_raw, tmp_path):
    secret = next(row for row in manifest.read(scenes_raw, "eval") if row.group == "heldout")
    raw = with_rows(scenes_raw, tmp_path / "raw", first("train", truth=secret.truth))
    (verdict,) = broken(raw, "scenes", tmp_path / "out")
    assert (verdict.column, verdict.count, verdict.examples) == ("leaked_pair", 1, ("train-000000",))


def test_a_broken_rule_leaves_a_whole_report_and_one_clear_line(scenes_raw, tmp_path):
    raw = with_rows(scenes_raw, tmp_path / "raw", first("train", sha256="bad"))
    report = checks.run(validate("scenes"), raw, SUITES, tmp_path / "out")
    message = r"1 of 18 rules are broken: sha256 match regex .*\(e.g. train-000000\)"
    with pytest.raises(ValueError, match=message) as error:
        report.require()
    assert "\n" not in str(error.value)
    assert "| sha256 | match regex" in report.table()
    assert "train-000000" in report.table()
    assert "1 critical rules are broken" in (tmp_path / "out/validation.md").read_text()
    content = storage.read_json(tmp_path / "out/validation.json")
    assert (content["holds"], content["broken"]) == (False, 1)
    assert (tmp_path / "out/docs/index.html").is_file()
    assert not list(tmp_path.glob(f"{storage.UNFINISHED}*"))


def test_a_broken_warning_stops_nothing(tmp_path, own):
    source = folder_of(tmp_path / "source")
    (source / "001.png").write_bytes(png_bytes(0))
    prepare.run(own, source, tmp_path / "raw")
    report = checks.run(validate("folder"), tmp_path / "raw", SUITES, tmp_path / "out")
    report.require()
    assert report.metrics()["warnings"] == 1
    assert "| sha256 | be unique | warning | 2 |" in report.table()


def quarantined(tmp_path, own, count=12):
    source = folder_of(tmp_path / "source", count)
    (source / "003.png").write_bytes(png_bytes(3)[:-40])
    prepare.run(own, source, tmp_path / "raw")
    return source


def test_too_many_unreadable_pictures_stop_naming_them_and_the_remedy(tmp_path, own):
    source = quarantined(tmp_path, own)
    report = checks.run(validate("folder"), tmp_path / "raw", SUITES, tmp_path / "out")
    with pytest.raises(
        ValueError,
        match=r"quarantine_share_max\), found 1 of 12 \(left out: 003.png: corrupt .*\): mend or delete",
    ):
        report.require()
    (source / "003.png").write_bytes(png_bytes(3))
    prepare.run(own, source, tmp_path / "raw")
    checks.run(validate("folder"), tmp_path / "raw", SUITES, tmp_path / "out").require()


def test_few_enough_unreadable_pictures_pass_and_are_listed(tmp_path, own):
    quarantined(tmp_path, own)
    checks.run(validate("folder", 0.1), tmp_path / "raw", SUITES, tmp_path / "out").require()
    assert "- 003.png: corrupt or truncated" in (tmp_path / "out/validation.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"s.yaml: no such suite; validate.suite can be \[\]"),
        ("expectations: 3", r"s.yaml: needs a list 'expectations'"),
        ("expectations: [{type: x, kwargs: {}}]", r"expectation 1 must have exactly type, kwargs and sev"),
        ("expectations: [{type: x, kwargs: {}, severity: fatal}]", r"severity 'fatal' is none of"),
        (
            "expectations: [{type: expect_nothing, kwargs: {}, severity: critical}]",
            r"suite s: a rule is malformed: expect_nothing",
        ),
        (
            "expectations: [{type: expect_column_to_exist, kwargs: {colum: key}, severity: critical}]",
            r"suite s: a rule is malformed: .*colum",
        ),
    ],
)
def test_a_malformed_suite_is_refused_by_name(scenes_raw, tmp_path, content, message):
    (tmp_path / "suites").mkdir()
    if content:
        (tmp_path / "suites/s.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        checks.run(validate("s"), scenes_raw, tmp_path / "suites", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rule_on_a_column_that_is_not_there_does_not_hold(scenes_raw, tmp_path):
    rule = {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "kee"}, "severity": "critical"}
    (tmp_path / "s.yaml").write_text(json.dumps({"expectations": [rule]}))
    report = checks.run(validate("s"), scenes_raw, tmp_path, tmp_path / "out")
    assert [(v.column, "could not be evaluated" in v.rule) for v in report.broken] == [("kee", True)]
