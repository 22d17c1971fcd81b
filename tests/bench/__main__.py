"""`python -m tests.bench [NAME …] [--quick]` measures; `python -m tests.bench profile NAME` shows the CPU time."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.bench.lines import LINES, MORE_SCENES, Line
from tests.bench.measure import Row, Scale
from tests.bench.profiling import profile
from tests.bench.references import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = ROOT / "bench-results.json"


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    if arguments[:1] == ["profile"]:
        profile_one(arguments[1:])
        return
    names = [line.name for line in LINES]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"lines to measure, all without a name: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="few tasks: shows that the bench works, no more")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.name) - set(names):
        parser.error(f"no line is named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    measure([line for line in LINES if line.name in (chosen.name or names)], Scale(chosen.quick))


def profile_one(arguments: Sequence[str]) -> None:
    """Run the scene of one line under the profiler."""
    choices = MORE_SCENES | {line.name: line.scene for line in LINES if line.scene is not None}
    parser = argparse.ArgumentParser(prog="python -m tests.bench profile")
    parser.add_argument("name", choices=sorted(choices))
    name = parser.parse_args(arguments).name
    profile(name, choices[name])


def measure(lines: Sequence[Line], scale: Scale) -> None:
    """Measure the lines one after another; print each as soon as it is there, and write all to a file."""
    report: dict[str, Any] = {"machine": machine(), "quick": scale.quick, "lines": []}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    missed: list[Row] = []
    for line in lines:
        if why := line.lacks():
            print(f"\n{line.name}: not measured: {why}", flush=True)
            report["lines"].append({"name": line.name, "lacks": why})
            continue
        before = os.getloadavg()[0]
        rows = line.measure(scale)
        after = os.getloadavg()[0]
        print(f"\n{line.name} (load {before:.2f} before, {after:.2f} after)")
        print(*rows, sep="\n", flush=True)
        told = [{**asdict(row), "goal": str(row.goal or ""), "met": row.met} for row in rows]
        report["lines"].append({"name": line.name, "load": [before, after], "rows": told})
        missed += [row for row in rows if row.met is False]
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{len(missed)} goals not met{':' if missed else ''}", *map(str, missed), sep="\n")
    if scale.quick:
        print("(--quick: these figures say nothing about the goals)")
    print(f"written to {RESULTS.name}")


def machine() -> dict[str, object]:
    """What it was measured on."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
