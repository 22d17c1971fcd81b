"""The process that waits beside a program, to end the program's jobs when it has died without a goodbye.

It runs in an interpreter of its own and must not import wfl, nor much else, while it waits: it may wait for days, and
there is one for every program. Its socket brings one line of JSON, what to do then, and at most a second line, "bye".
"""

import os
import select
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
"""They often go to all processes of a program or user together, and that is just when this one is needed."""


def main(arguments: list[str]) -> None:
    """Arguments: the descriptors of the socket and of the program itself (pidfd_open(2); -1 where there is none)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the program's mask came along
    orders, *rest = wait(*map(int, arguments)).split(b"\n")
    if rest and rest[0] != b"bye":  # without whole orders it died before it could start anything
        carry_out(orders)


def wait(sock: int, program: int) -> bytes:
    """Wait for the program's goodbye or its end, and return what it has said until then.

    Its end is known even where a stray copy of its socket lives on (a fork in foreign code).
    """
    os.set_blocking(sock, False)
    poll = select.poll()
    for fd in (sock, program):
        if fd >= 0:
            os.set_inheritable(fd, False)  # noqa: FBT003
            poll.register(fd, select.POLLIN)
    said = b""
    while True:
        over = program in dict(poll.poll())  # looked at first: what it said before is in the socket
        try:
            while data := os.read(sock, 1 << 16):
                said += data
            over = True
        except BlockingIOError:
            over = over or said.endswith(b"\nbye\n")
        except OSError:
            over = True
        if over:
            return said


def carry_out(orders: bytes) -> None:
    """Call the function that ends the jobs: by now memory does not matter."""
    import contextlib
    import importlib
    import json

    found = json.loads(orders)
    with contextlib.suppress(OSError):
        os.chdir(found["cwd"])  # paths may be relative to it
    if not getattr(sys, "frozen", False):  # a bundle has all in itself, and the program's is gone
        sys.path[:] = found["path"]
    module, _, name = found["function"].partition(":")
    getattr(importlib.import_module(module), name)(**found["arguments"])
