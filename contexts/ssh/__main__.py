"""`python -m wfl.contexts.ssh HOST…`: what is missing on these hosts."""

from __future__ import annotations

import argparse
import sys

from wfl.contexts.ssh import SshContext, doctor
from wfl.errors import WflError


def main() -> int:
    """Tell it, host by host; 1 where something is missing."""
    parser = argparse.ArgumentParser(prog="python -m wfl.contexts.ssh", description=__doc__)
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="[user@]host[:port], or a Host of ~/.ssh/config")
    parser.add_argument("--config", default="~/.ssh/config", help="the ssh command's configuration file")
    parser.add_argument("--shell", default="/bin/sh", help="the POSIX shell to use there")
    parser.add_argument("--directory", default=".wfl/ssh", help="where jobs' directories are kept there")
    given = parser.parse_args()
    try:
        context = SshContext(given.hosts, config=given.config, shell=given.shell, directory=given.directory)
        told = {host: doctor(host, context) for host in context.hosts}
    except WflError as error:
        parser.error(str(error))
    for host, lines in told.items():
        for line in lines or ["all is well"]:
            print(f"{host}: {line}")  # noqa: T201 - a command
    return int(any(told.values()))


if __name__ == "__main__":
    sys.exit(main())
