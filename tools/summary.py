"""Tells, from pytest's result files, which suites ran on which Python: tools/summary.py DIRECTORY."""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

OUTCOMES = ("passed", "failed", "skipped")


def outcome(case: ET.Element) -> str:
    """Return one of OUTCOMES; an error in set-up or in clearing up is a failure."""
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags else "passed"


def main(directory: Path) -> int:
    """Print a table and a closing line; fail when a test failed or none passed."""
    rows: Counter[tuple[str, str, str]] = Counter()
    again, failed = [], []
    for file in sorted(directory.glob("*.xml")):
        ends: dict[str, list[str]] = {}  # of each case; of one that was run again, several
        for case in ET.parse(file).iter("testcase"):  # noqa: S314 - pytest's own file, written a moment ago
            where = case.get("classname") or case.attrib["name"]  # a file that fails to load has no class
            ends.setdefault(f"{where}::{case.get('name')}", []).append(outcome(case))
        for name, (*before, last) in ends.items():
            rows[file.stem, ".".join(name.partition("::")[0].split(".")[:2]), last] += 1
            if last == "failed":
                failed.append(f"FAILED {name} on {file.stem}")
            elif before:
                again.append(f"{name} on {file.stem}: {last} when it was run again")

    print(f"{'python':<14}{'suite':<24}" + "".join(f"{name:>9}" for name in OUTCOMES))
    for python, suite in sorted({key[:2] for key in rows}):
        print(f"{python:<14}{suite:<24}" + "".join(f"{rows[python, suite, name]:>9}" for name in OUTCOMES))
    total = {name: sum(rows[key] for key in rows if key[2] == name) for name in OUTCOMES}
    print("total: " + ", ".join(f"{total[name]} {name}" for name in OUTCOMES))
    print("\n".join(again + failed))
    return 0 if total["passed"] and not total["failed"] else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
