"""What the conformance suite says of itself: which parts of it are run where, and the page that is made of results."""

import json
from pathlib import Path

import pytest

from wfl.testing.conformance import ours, results
from wfl.testing.conformance.site import Site


@pytest.mark.parametrize("site", [site for site in ours.sites() if site.files], ids=lambda site: site.name)
def test_parts_are_files_of_the_suite(site: Site) -> None:
    """A site that runs a part names files that there are."""
    assert site.files is not None
    assert site.files <= {case.file for case in results.cases()}


def test_a_part_has_a_reason() -> None:
    """A site cannot leave files out without saying why."""
    with pytest.raises(AssertionError, match="go together"):
        Site(name="second", context=ours.PROCESS.context, files=frozenset({"test_ends"}))


def test_page(tmp_path: Path) -> None:
    """The page has a column per site, in the order asked for, reasons for what does not apply, and those of parts."""
    case = next(iter(results.cases()))
    ends = {"second": {"outcome": "not applicable", "reason": "it cannot"}, "first": {"outcome": "passed"}}
    for name, end in ends.items():
        part = "where it shows" if name == "second" else ""
        (tmp_path / f"{name}.json").write_text(json.dumps({"site": name, "part": part, "cases": {case.id: end}}))
    page = results.table(tmp_path, ["first", "never run"])
    assert "| behaviour | first | second |" in page
    assert f"| {case.sentence} | ✓ | – (1) |" in page
    assert "\n1. it cannot\n" in page
    assert "\n- second: where it shows.\n" in page
    assert "- first:" not in page
