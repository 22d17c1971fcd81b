"""Job servers for sites: each is started once for a run, when it is first asked for, and ends with the run."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from wfl.errors import SessionManagementError

STARTS = 60.0
"""Seconds in which a server is there, on a busy machine."""
_VARIABLE = "WFL_CONFORMANCE_SERVERS"
"""How programs that cases start learn of the servers that there are: JSON, name to [url, token]."""
_started: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}


class Server(NamedTuple):
    """Where a server is, and who may ask there."""

    url: str
    token: str


def server(name: str, *options: str) -> Server:
    """The server of this name, which is started with these options where it is not there yet."""
    known = json.loads(os.environ.get(_VARIABLE, "{}"))
    if name not in known:
        known[name] = _start(name, *options)
        os.environ[_VARIABLE] = json.dumps(known)
    return Server(*known[name])


def _start(name: str, *options: str) -> Server:
    directory = Path(tempfile.mkdtemp(prefix="wfl-server-"))
    directory.chmod(0o755)
    own, place = [sys.executable, "-m", "wfl.server"], ("--directory", str(directory / "server"))
    created = subprocess.run([*own, "token", "create", "suite", *place], capture_output=True, text=True, check=False)
    if created.returncode:
        words = created.stderr.strip().splitlines()
        raise SessionManagementError(f"the job server {name} cannot be run: {' '.join(words[-1:])}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [*own, "--log-level", "warning", "serve", "--end-jobs", "--listen", address, *place, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # what interrupts the suite is not for the server
        )
    if not _started:
        atexit.register(stop)
    _started[name] = (process, directory)
    until = time.monotonic() + STARTS
    while not _is_ready(f"http://{address}/readyz"):
        if process.poll() is not None or time.monotonic() > until:
            words = (directory / "log").read_text(errors="replace").strip().splitlines()
            raise SessionManagementError(f"the job server {name} does not start: {' '.join(words[-1:])}")
        time.sleep(0.05)
    return Server(f"http://{address}", created.stdout.strip())


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except OSError:
        return False


def jobs(found: Server) -> dict[str, int]:
    """How many jobs the server knows."""
    request = urllib.request.Request(  # noqa: S310 - our own address
        f"{found.url}/api/v1/sessions", headers={"Authorization": f"Bearer {found.token}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return {"jobs": sum(one["jobs"] for one in json.load(answer)["sessions"])}


def stop(keep: Path | None = None) -> None:
    """End all that this program has started; with `keep` their logs are copied there."""
    while _started:
        name, (process, directory) = _started.popitem()
        process.terminate()
        try:
            process.wait(STARTS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / "log", keep / f"server-{name}.log")
        shutil.rmtree(directory, ignore_errors=True)
    os.environ.pop(_VARIABLE, None)
