"""Results: one JSON file per site, and the table of cases and sites that is made of them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import wfl
from wfl.testing.conformance.site import EVERY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pytest

    from wfl.testing.conformance.site import Site

NOT_APPLICABLE = "not applicable: "
_OUTCOMES = ("failed", "passed", "not applicable")
"""The first of these that a test of a case had is the case's."""
_HEAD = """\
# Conformance

One suite of cases, written against the public contract alone, is run against every execution system. Each case is one
behaviour, and its sentence below is the test's own. ✓: passed. –: not applicable there, for the reason given below
the table. ✗: failed. An empty field: not run.

`make conformance` writes this page from the results of the last `make test-all`. `python -m wfl.testing.conformance
--wfl-context package.module:factory` runs the suite against a context of your own, and with `--write PAGE` in place of
a context it writes such a page.
"""

_PARTS = """
Some of these are second ways to a system, and have that part of the suite in which they differ from the first
(`WFL_EVERY=1` runs all of it everywhere):
"""


class Case(NamedTuple):
    """One test function of the suite."""

    file: str
    name: str
    sentence: str

    @property
    def id(self) -> str:
        """Its name in result files."""
        return f"{self.file}::{self.name}"


class Record:
    """How the cases of this run ended; a case with parameters has passed when it passed with all that apply."""

    def __init__(self) -> None:
        self._sites: dict[str, dict[str, dict[str, dict[str, str]]]] = {}  # by site, case and test
        self._parts: dict[str, str] = {}  # why at this site only some files are run

    def add(self, site: Site, item: pytest.Function, report: pytest.TestReport, error: Any) -> None:
        """One phase of one test."""
        if report.when == "teardown" and report.passed:
            return
        file = item.module.__name__.rpartition(".")[2]
        if site.why and not EVERY:
            self._parts[site.name] = site.why
        tests = self._sites.setdefault(site.name, {}).setdefault(f"{file}::{item.originalname}", {})
        if report.when == "setup":
            tests.pop(item.nodeid, None)  # it failed, and is run again
        if report.failed:
            tests[item.nodeid] = {"outcome": "failed"}
        elif report.skipped:
            reason = str(getattr(error and error.value, "msg", error and error.value))
            if reason.startswith(NOT_APPLICABLE):
                tests[item.nodeid] = {"outcome": "not applicable", "reason": reason.removeprefix(NOT_APPLICABLE)}
        elif report.when == "call":
            tests[item.nodeid] = {"outcome": "passed"}

    def write(self, directory: Path) -> None:
        """Add them to what earlier runs have left."""
        for site, tests in self._sites.items():
            cases = {
                case: min(ends.values(), key=lambda end: _OUTCOMES.index(end["outcome"]))
                for case, ends in tests.items()
                if ends
            }
            if not cases:
                continue
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / f"{site}.json"
            old = json.loads(path.read_text())["cases"] if path.exists() else {}
            whole: dict[str, Any] = {"site": site, "wfl": _version(), "part": self._parts.get(site, "")}
            whole["cases"] = dict(sorted({**old, **cases}.items()))
            path.write_text(json.dumps(whole, indent=1) + "\n")


def cases() -> Iterator[Case]:
    """All cases of the suite, as they stand in its files."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                sentence = " ".join((ast.get_docstring(node) or node.name).split())
                yield Case(path.stem, node.name, sentence)


def table(directory: Path, first: Sequence[str] = ()) -> str:
    """The page: cases by sites (these first, in this order), with the reasons of what does not apply."""
    names = [*first, *sorted({path.stem for path in directory.glob("*.json")} - {*first})]
    files = {name: directory / f"{name}.json" for name in names}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    sites = {name: result["cases"] for name, result in found.items()}
    everything = list(cases())
    notes: dict[str, int] = {}
    lines = [_HEAD, _totals(everything, sites)]
    parts = [f"- {name}: {result['part']}." for name, result in found.items() if result.get("part")]
    lines += [_PARTS, *parts] if parts else []
    for file in dict.fromkeys(case.file for case in everything):
        lines += [f"\n## {file.removeprefix('test_').replace('_', ' ').capitalize()}\n"]
        lines += [f"| behaviour | {' | '.join(sites)} |", f"|---|{':-:|' * len(sites)}"]
        for case in everything:
            if case.file == file:
                marks = [_mark(cases.get(case.id), notes) for cases in sites.values()]
                lines.append(f"| {_escaped(case.sentence)} | {' | '.join(marks)} |")
    lines += ["\n## Not applicable\n", *(f"{number}. {reason}" for reason, number in notes.items())] if notes else []
    return "\n".join(lines) + "\n"


def _totals(everything: list[Case], sites: dict[str, Any]) -> str:
    lines = [f"{len(everything)} cases.\n", "| | passed | not applicable | failed |", "|---|--:|--:|--:|"]
    known = {case.id for case in everything}
    for site, ends in sites.items():
        outcomes = [end["outcome"] for case, end in ends.items() if case in known]
        counts = [outcomes.count(outcome) for outcome in ("passed", "not applicable", "failed")]
        lines.append(f"| {site} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def _mark(end: dict[str, str] | None, notes: dict[str, int]) -> str:
    if end is None:
        return ""
    if end["outcome"] == "not applicable":
        return f"– ({notes.setdefault(end['reason'], len(notes) + 1)})"
    return {"passed": "✓", "failed": "✗"}[end["outcome"]]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("wfl-sdk")
    except PackageNotFoundError:
        return f"at {Path(wfl.__file__).parent}"
