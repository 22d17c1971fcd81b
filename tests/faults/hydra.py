"""A task that is hard to end: python hydra.py LOG [SECONDS]. Each of its processes notes its pid and start time.

It ignores SIGTERM and has a child in a session of its own, a double-forked daemon with an emptied environment and
a process that has stopped itself.
"""

import os
import signal
import sys
import time


def note(log: str) -> None:
    """Write pid and start time in one piece."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{os.getpid()} {ticks}\n".encode())
    os.close(fd)


def main(log: str, seconds: str = "600") -> None:
    """Fork the heads, then sleep."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(log)
    if os.fork() == 0:
        os.setsid()
        note(log)
        time.sleep(float(seconds))
        os._exit(0)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            note(log)
            os.execve("/bin/sleep", ["sleep", seconds], {})
        os._exit(0)
    if os.fork() == 0:
        note(log)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(float(seconds))
        os._exit(0)
    time.sleep(float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
