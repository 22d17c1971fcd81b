"""The command `wfl` (`python -m wfl`): runs a job server, and keeps the book of who may use it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from wfl.errors import WflError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    try:
        from wfl.server.__main__ import main as server
    except WflError as error:  # the extra is not installed
        print(error, file=sys.stderr)  # noqa: T201 - a command's words
        return 1
    return server(arguments, program="wfl")


if __name__ == "__main__":
    sys.exit(main())
