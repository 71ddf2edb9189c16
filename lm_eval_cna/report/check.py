"""A check as a table, as JUnit XML and as a summary for GitHub; names come from files and are escaped."""

from __future__ import annotations

from xml.etree import ElementTree

from lm_eval_cna.analysis.regression import Check, Finding
from lm_eval_cna.report.escape import item, markdown, plain, writable
from lm_eval_cna.report.markdown import markdown_table
from lm_eval_cna.report.tables import Entry, Table

HEAD = ("check", "cell", "task, metric", "before", "now", "allowed", "prompts", "p", "result")


def rows(check: Check) -> list[tuple[str, ...]]:
    """The comparisons as rows of unescaped text with the columns of `HEAD`, failures first."""
    ordered = sorted(check.findings, key=lambda finding: finding.passed)
    return [
        (
            finding.what,
            finding.cell,
            f"{finding.task}, {finding.metric}",
            _number(finding, finding.before),
            _now(finding),
            _allowed(finding),
            f"{finding.n} seeds" if finding.what == "controls" else str(finding.n),
            "-" if finding.p is None else f"{finding.p:.2g}",
            f"{'pass' if finding.passed else 'FAIL'}: {finding.text}",
        )
        for finding in ordered
    ]


def verdict(check: Check) -> str:
    """The outcome in a sentence, unescaped."""
    failed, total = len(check.failures), len(check.findings)
    said = f"{check.run} ({check.model}) against the baseline of {check.against}"
    return f"failed: {said}: {failed} of {total} checks" if failed else f"passed: {said}: {total} checks"


def summary(check: Check) -> str:
    """The check as Markdown, for a GitHub step summary."""
    table = Table(
        name="check",
        caption="",
        head=HEAD,
        rows=tuple(tuple(Entry(text) for text in row) for row in rows(check)),
        words=3,
    )
    parts = [f"### lm-eval-cna check {markdown(verdict(check))}", markdown_table(table)]
    parts += [item(note) for note in check.notes]
    return writable("\n\n".join(parts) + "\n")


def junit(check: Check) -> str:
    """The check as JUnit XML: one test case a comparison."""
    suite = ElementTree.Element(
        "testsuite",
        name=plain(f"lm-eval-cna check {check.run}"),
        tests=str(len(check.findings)),
        failures=str(len(check.failures)),
        errors="0",
        skipped="0",
    )
    for finding, row in zip(sorted(check.findings, key=lambda found: found.passed), rows(check), strict=True):
        name = plain(f"{finding.what} of {finding.metric} on {finding.task} in {finding.cell}")
        case = ElementTree.SubElement(suite, "testcase", classname=plain(f"lm-eval-cna.{finding.what}"), name=name)
        said = plain("; ".join(f"{head}: {text}" for head, text in zip(HEAD, row, strict=True)))
        if finding.passed:
            ElementTree.SubElement(case, "system-out").text = said
        else:
            ElementTree.SubElement(case, "failure", message=plain(finding.text), type=finding.what).text = said
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    # XML 1.0 does not allow noncharacters, escaped or not.
    text = ElementTree.tostring(suites, encoding="unicode").replace("\ufffe", "?").replace("\uffff", "?")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + writable(text) + "\n"


def _number(finding: Finding, value: float) -> str:
    if finding.what in ("effect", "controls"):
        return f"{100 * value:+.1f} points" if finding.kind == "rate" else f"{value:+.3f}"
    return f"{100 * value:.1f} %" if finding.kind == "rate" else f"{value:.3f}"


def _now(finding: Finding) -> str:
    if finding.now is None:
        return "-"
    shown = _number(finding, finding.now)
    if finding.interval is None:
        return shown
    ends = (_number(finding, end).removesuffix(" points") for end in (finding.interval.low, finding.interval.high))
    return f"{shown} ({' to '.join(ends)})"


def _allowed(finding: Finding) -> str:
    low, high = (
        _number(finding, end).removesuffix(" points").removesuffix(" %") for end in (finding.low, finding.high)
    )
    return f"outside {low} to {high}" if finding.what == "controls" else f"{low} to {high}"
