"""`python -m wfl.testing.conformance --wfl-context package.module:factory [pytest's options]` runs the suite.

`--write PAGE` (with `--wfl-results DIR`, default build/conformance) writes the table of all results instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from wfl.testing.conformance import ours, results


def main(arguments: list[str]) -> int:
    """Run, or write."""
    parser = argparse.ArgumentParser(prog="python -m wfl.testing.conformance", add_help=False, allow_abbrev=False)
    parser.add_argument("--write", metavar="PAGE", type=Path)
    parser.add_argument("--wfl-results", metavar="DIR", type=Path, default=Path("build/conformance"))
    given, _ = parser.parse_known_args(arguments)
    if given.write is not None:
        first = [site.name for site in ours.sites()]
        given.write.write_text(results.table(given.wfl_results, first), encoding="utf-8")
        return 0
    suite = str(Path(__file__).parent)
    return int(pytest.main([suite, "-p", "no:cacheprovider", "-ra", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
