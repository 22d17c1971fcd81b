"""Whether a host has what jobs there need: looked at from here, in one connection, and nothing is left behind."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from wfl.contexts.posix import quoted
from wfl.contexts.ssh.connection import Connection, spoken
from wfl.errors import WflError

if TYPE_CHECKING:
    from wfl.contexts.ssh.line import Speaks
    from wfl.contexts.ssh.login import Login

CHANNELS = 5, 8
"""At once, of all kinds: what is used at most, of a host of jobs and of a cluster's login node."""
SKEW = 5.0
"""Seconds that two clocks may differ before that is told."""
_LOOK = """
for w in cat date grep kill ln mkdir mkfifo rm rmdir sleep uname; do
    command -v "$w" >/dev/null || echo "missing $w"
done
command -v setsid >/dev/null || echo nogroups
command -v setsid >/dev/null || command -v ps >/dev/null || echo 'missing setsid, and ps in its place'
[ -r /proc/self/stat ] || echo noproc
umask 077
cd || echo 'nohome'
mkdir -p -- %(directory)s && cd -- %(directory)s || echo nodirectory
w_try=doctor.$$
mkfifo "$w_try" 2>/dev/null && rm -f -- "$w_try" || echo nopipe
[ "$(printf 'a\\0b' | grep -c -F b 2>/dev/null)" = 1 ] || echo slowgrep
set -- $(df -P -k . 2>/dev/null | tail -n 1)
echo "free ${4:-}"
grep -s -q '^ *KillUserProcesses *= *yes' /etc/systemd/logind.conf && echo logout
cd && rmdir -p -- %(directory)s 2>/dev/null
echo "clock $(date +%%s)"
"""
_WORDS = {
    "nogroups": "there is no setsid: jobs are ended by going through the table of processes, which misses daemons",
    "noproc": "there is no /proc: times are those of the answers, and a job's number may come to be another process's",
    "nohome": "the home directory cannot be entered: give directory=/an/absolute/path",
    "nodirectory": "directory cannot be made or entered: give another one",
    "nopipe": "no named pipe can be made in directory: give one on another file system",
    "slowgrep": "its grep sees nothing behind a NUL: looking for processes that left a job's group takes longer",
    "logout": "logind ends what users leave behind (KillUserProcesses=yes): `loginctl enable-linger` for this user, or "
    "jobs end with the connection",
}
LITTLE = 102400
"""KiB below which the room on a disk is told."""


def findings(login: Login, speaks: Speaks) -> list[str]:
    """What is missing on a host or may surprise there, each in a line; none where all is well."""
    try:
        connection = Connection(login, timeout=speaks.timeout, passphrase=speaks.passphrase)
    except WflError as error:
        return [str(error)]
    try:
        return [*_of_the_shell(connection, speaks), *_of_channels(connection)]
    finally:
        connection.close()


def _of_the_shell(connection: Connection, speaks: Speaks) -> list[str]:
    try:
        lines = spoken(connection, speaks.shell, _LOOK % {"directory": quoted(speaks.directory)}).splitlines()
    except WflError as error:
        return [f"{speaks.shell} cannot be run: {error}"]
    found = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "missing":
            found.append(f"there is no command {rest}")
        elif word == "free" and rest.isdigit() and int(rest) < LITTLE:
            found.append(f"the disk of {speaks.directory} has {int(rest) // 1024} MiB left")
        elif word == "clock" and abs(skew := int(rest) + 0.5 - time.time()) > SKEW:
            found.append(f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}; times are told by ours")
        elif word in _WORDS:
            found.append(_WORDS[word])
    if not any(line.startswith("clock ") for line in lines):
        found.append(f"{speaks.shell} is no POSIX shell, or a login prints something else: {' '.join(lines)[:200]!r}")
    return found


def _of_channels(connection: Connection) -> list[str]:
    with ExitStack() as stack:
        try:
            client = stack.enter_context(connection.files())
            client.listdir(".")
        except (WflError, OSError) as error:
            return [f"no files can be copied: {error}"]
        for number in range(1, max(CHANNELS)):
            try:
                stack.callback(connection.command("exec sleep 10").close)
            except WflError:
                own, node = CHANNELS
                used = f"{own} are used at most, {node} of" if number < own else f"{node} are used at most of"
                return [
                    f"it takes {number} channels at once; {used} a cluster's login node: MaxSessions of sshd_config"
                ]
    return []
