"""Great Expectations on the manifest: the verdict by the critical rules, a table that a person can read, Data
Docs.

Suites are YAML files (profiles/suites): a list of {type, kwargs, severity}. Computed columns stand beside the
manifest's: `size` "64x64", `oblong_px` width - height, `also_in_eval` (a training row whose picture the
evaluation split shows too), `leaked_pair` (a held-out colour and shape that a training row shows, else "").
Used by the stage validate.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from sana_sprint import config, storage
from sana_sprint.data import manifest, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SEVERITIES = ("critical", "warning", "info")
EXAMPLES = 5
VALUE_RULE = "expect_column_values_to_"


@dataclass(frozen=True)
class Verdict:
    """One rule's result: the column ("" for the table), the rule in words, how many rows break it, keys of
    some.
    """

    column: str
    rule: str
    severity: str
    holds: bool
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What a validation found."""

    rows: int
    verdicts: tuple[Verdict, ...]

    @property
    def broken(self) -> list[Verdict]:
        """The critical rules that do not hold."""
        return [verdict for verdict in self.verdicts if not verdict.holds and verdict.severity == "critical"]

    def metrics(self) -> dict[str, float]:
        """Returns counts: rows, rules, broken critical rules, broken warnings."""
        fallen = sum(not verdict.holds for verdict in self.verdicts)
        return {
            "rows": self.rows,
            "rules": len(self.verdicts),
            "broken": len(self.broken),
            "warnings": fallen - len(self.broken),
        }

    def table(self) -> str:
        """Returns the rules that do not hold as a table of column, rule, severity, count and example keys."""
        return table([verdict for verdict in self.verdicts if not verdict.holds])

    def require(self) -> None:
        """Raises ValueError in one line when a critical rule is broken."""
        if self.broken:
            faults = "; ".join(
                f"{verdict.column or 'table'} {verdict.rule} (e.g. {', '.join(verdict.examples[:3])})"
                if verdict.examples
                else f"{verdict.column or 'table'} {verdict.rule}"
                for verdict in self.broken
            )
            raise ValueError(
                f"{len(self.broken)} of {len(self.verdicts)} rules are broken: {faults}; mend the source and "
                "run `dvc repro` again; the whole list is in data/reports/validation/validation.md"
            )


def run(params: config.Validate, raw: Path, suites: Path, out: Path) -> Report:
    """Writes validation.json, validation.md and docs/ into `out`, also when rules are broken; returns the
    report. Raises ValueError for a missing or malformed suite.
    """
    frame = facts(manifest.read(raw))
    suite = read_suite(suites / f"{params.suite}.yaml")
    faults = manifest.read_faults(raw)
    with storage.whole_folder(out) as whole:
        verdicts = [
            *judge(frame, suite, params.suite, whole / "docs"),
            quarantine(params, len(frame), faults),
        ]
        report = Report(len(frame), tuple(verdicts))
        content = report.metrics() | {
            "suite": params.suite,
            "holds": not report.broken,
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "quarantined": [asdict(fault) for fault in faults],
        }
        storage.write_json(whole / "validation.json", content)
        storage.write_text(whole / "validation.md", markdown(report, params.suite, faults))
    return report


def facts(rows: Sequence[manifest.Row]) -> pd.DataFrame:
    """Returns the manifest as a frame with the computed columns."""
    frame = pd.DataFrame([asdict(row) for row in rows], columns=manifest.SCHEMA.names)
    shown = set(frame.loc[frame["split"] == "eval", "sha256"])
    pairs = heldout_pairs(rows)
    training = frame["split"] == "train"
    frame["oblong_px"] = frame["width"] - frame["height"]
    frame["size"] = frame["width"].astype(str) + "x" + frame["height"].astype(str)
    frame["also_in_eval"] = training & frame["sha256"].isin(shown)
    frame["leaked_pair"] = [leak(row, pairs) for row in rows]
    return frame


def heldout_pairs(rows: Sequence[manifest.Row]) -> set[tuple[str, str]]:
    """Returns the held-out (colour, shape) pairs: the first object of each caption in the group heldout."""
    demands = [manifest.truth(row)["demand"]["objects"][0] for row in rows if row.group == "heldout" and row.task]
    return {(first["colour"], first["shape"]) for first in demands}


def leak(row: manifest.Row, pairs: set[tuple[str, str]]) -> str:
    """Returns a held-out pair that a training row shows, in words, or ""."""
    if row.split != "train" or not pairs:
        return ""
    things = manifest.truth(row).get("things", [])
    return next((f"{t['colour']} {t['shape']}" for t in things if (t["colour"], t["shape"]) in pairs), "")


def read_suite(path: Path) -> list[dict[str, Any]]:
    """Returns the rules of a suite. Raises ValueError naming the file and the rule that is malformed."""
    if not path.is_file():
        raise ValueError(f"{path}: no such suite; validate.suite can be {config.known_profiles(path.parent)}")
    rules = config.read(path).get("expectations")
    if not isinstance(rules, list) or not rules:
        raise ValueError(f"{path}: needs a list 'expectations' of {{type, kwargs, severity}}")
    for number, rule in enumerate(rules, start=1):
        if not isinstance(rule, dict) or set(rule) != {"type", "kwargs", "severity"}:
            raise ValueError(f"{path}: expectation {number} must have exactly type, kwargs and severity, got {rule!r}")
        if rule["severity"] not in SEVERITIES:
            raise ValueError(f"{path}: expectation {number}: severity {rule['severity']!r} is none of {SEVERITIES}")
    return rules


def judge(frame: pd.DataFrame, rules: list[dict[str, Any]], name: str, docs: Path) -> list[Verdict]:
    """Returns the verdict of each rule, in order, and writes the Data Docs into `docs`."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx  # seconds to import
    from great_expectations.checkpoint import UpdateDataDocsAction
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    warnings.filterwarnings("ignore", module=r"great_expectations\..*")
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    for site in context.get_site_names():
        context.delete_data_docs_site(site)
    context.add_data_docs_site("docs", site_config(docs))
    try:
        expectations = [ExpectationConfiguration(**rule).to_domain_obj() for rule in rules]
    except Exception as error:  # the library raises many kinds for a bad rule
        raise ValueError(f"suite {name}: a rule is malformed: {' '.join(str(error).split())}") from error
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    asset = context.data_sources.add_pandas("data").add_dataframe_asset("manifest")
    batch = asset.add_batch_definition_whole_dataframe("whole")
    definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
    context.validation_definitions.add(definition)
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[definition],
        actions=[UpdateDataDocsAction(name="docs")],
        result_format={
            "result_format": "SUMMARY",
            "unexpected_index_column_names": ["key"],
            "partial_unexpected_count": EXAMPLES,
        },
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": frame})
    (result,) = outcome.run_results.values()
    return [verdict(item.to_json_dict()) for item in result.results]


def site_config(docs: Path) -> Any:
    """Returns the settings of a Data Docs site in a local folder."""
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)},
    }


def verdict(item: dict[str, Any]) -> Verdict:
    """Returns one result of Great Expectations as a Verdict; a rule that could not be evaluated does not
    hold.
    """
    setting, result = item["expectation_config"], item.get("result", {})
    kwargs = {key: value for key, value in setting["kwargs"].items() if key not in ("column", "batch_id")}
    rule = setting["type"].removeprefix(VALUE_RULE).removeprefix("expect_").replace("_", " ")
    limits = ", ".join(f"{key} {json.dumps(value)}" for key, value in kwargs.items())
    observed = result.get("observed_value")
    rule += f" ({limits})" if limits else ""
    if not item["success"]:
        rule += f", found {json.dumps(observed)}" if observed is not None else fault_of(item)
    examples = [str(index["key"]) for index in result.get("partial_unexpected_index_list") or []]
    return Verdict(
        column=setting["kwargs"].get("column", ""),
        rule=rule,
        severity=setting.get("severity") or "critical",
        holds=bool(item["success"]),
        count=int(result.get("unexpected_count") or 0),
        examples=tuple(examples[:EXAMPLES]),
    )


def fault_of(item: dict[str, Any]) -> str:
    """Returns why a rule could not be evaluated, as the end of a sentence, or ""."""
    found = item.get("exception_info") or {}
    nested = [found] if "exception_message" in found else list(found.values())
    messages = [entry.get("exception_message") for entry in nested if isinstance(entry, dict)]
    return next((f", could not be evaluated: {' '.join(text.split())}" for text in messages if text), "")


def quarantine(params: config.Validate, rows: int, faults: Sequence[manifest.Fault]) -> Verdict:
    """Returns the verdict on the share of pictures that prepare left out."""
    share = len(faults) / max(1, rows + len(faults))
    holds = share <= params.quarantine_share_max
    rule = f"share of pictures left out at most {params.quarantine_share_max:g} (validate.quarantine_share_max)"
    if not holds:
        found = f"{len(faults)} of {rows + len(faults)}"
        rule += f", found {found}{prepare.named(list(faults))}: mend or delete these"
    return Verdict("quarantine", rule, "critical", holds, len(faults), tuple(f.name for f in faults[:EXAMPLES]))


def table(verdicts: Sequence[Verdict]) -> str:
    """Returns verdicts as a Markdown table."""
    lines = ["| column | rule | severity | count | example keys |", "|---|---|---|---|---|"]
    for item in verdicts:
        cells = (item.column, item.rule, item.severity, str(item.count), ", ".join(item.examples))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def markdown(report: Report, suite: str, faults: Sequence[manifest.Fault]) -> str:
    """Returns the page validation.md."""
    holds = "all critical rules hold" if not report.broken else f"{len(report.broken)} critical rules are broken"
    parts = [f"# Validation, suite {suite}: {holds}", f"{report.rows} rows, {len(report.verdicts)} rules."]
    fallen = [verdict for verdict in report.verdicts if not verdict.holds]
    if fallen:
        parts += ["## Broken", table(fallen)]
    parts += ["## Holding", table([verdict for verdict in report.verdicts if verdict.holds])]
    if faults:
        parts += ["## Left out by prepare", "\n".join(f"- {fault.name}: {fault.reason}" for fault in faults)]
    return "\n\n".join(parts) + "\n"
