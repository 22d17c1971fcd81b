"""Sites of PBS, Torque, LSF and Flux without any of them: their commands as `commands.py` replays them.

So it shows that the commands are used as their manuals say, and that the answers are read as they are printed; not that
a real system does what its manual says.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from wfl import Context, Workflow
from wfl.contexts.batch.flux import FluxContext
from wfl.contexts.batch.lsf import LsfContext
from wfl.contexts.batch.pbs import PbsContext
from wfl.testing.conformance.site import POSIX, Site

COMMANDS = {
    "openpbs": ("qsub", "qstat", "qselect", "qdel", "qhold", "qrls", "qsig", "qalter"),
    "torque": ("qsub", "qstat", "qselect", "qdel", "qhold", "qrls", "qsig", "qalter"),
    "lsf": ("bsub", "bjobs", "bkill", "bstop", "bresume", "bparams"),
    "flux": ("flux",),
}
_PLACE = "WFL_REPLAY"
"""Where programs that the suite starts find the same replay."""
_kept: list[tempfile.TemporaryDirectory[str]] = []


def install(directory: Path, dialect: str) -> dict[str, str]:
    """Put the commands into a directory; the environment in which they are found."""
    binaries, spool = directory / dialect / "bin", directory / dialect / "spool"
    binaries.mkdir(parents=True, exist_ok=True)
    spool.mkdir(exist_ok=True)
    program = Path(__file__).with_name("commands.py")
    for name in COMMANDS[dialect]:
        path = binaries / name
        if not path.exists():
            line = f'exec "{sys.executable}" -ISB "{program}" "{spool}" {dialect} {name} "$@"'
            new = binaries / f"{name}.{os.getpid()}"
            new.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
            new.chmod(0o755)
            new.rename(path)
    return {"PATH": f"{binaries}:{os.environ['PATH']}"}


def _place() -> Path:
    if _PLACE not in os.environ:
        _kept.append(tempfile.TemporaryDirectory(prefix="wfl-replay-", ignore_cleanup_errors=True))
        os.environ[_PLACE] = _kept[0].name
    return Path(os.environ[_PLACE])


def context(dialect: str, place: Path, **given: Any) -> Context:
    """A context whose scheduler is the replay in this directory."""
    settings: dict[str, Any] = {"directory": place / dialect / "jobs", "environment": install(place, dialect), **given}
    return _KINDS[dialect](**settings)


_KINDS: dict[str, type[Context]] = {
    "openpbs": PbsContext,
    "torque": PbsContext,
    "lsf": LsfContext,
    "flux": FluxContext,
}


def _site(dialect: str, name: str, inapplicable: dict[str, str] | None = None) -> Site:
    return Site(
        name=f"replay-{dialect}",
        context=lambda **given: context(dialect, _place(), **{"detach": False, **given}),
        program=f"tests.replay:{name}",
        shared=Path(tempfile.gettempdir()),
        commands=POSIX,
        latency=5.0,
        remembers=True,
        count=lambda: {"jobs": _living(dialect)},
        clean=lambda session: _clean(dialect, session),
        inapplicable=inapplicable or {},
    )


def _living(dialect: str) -> int:
    """Jobs and elements that have not ended."""
    found = 0
    for path in (_place() / dialect / "spool").glob("*.json"):
        found += sum(one["state"] != "F" for one in json.loads(path.read_text(encoding="utf-8"))["elements"].values())
    return found


def _clean(dialect: str, session: str) -> None:
    """End what a session has left, and forget it."""
    directory = _place() / dialect / "jobs" / session
    if directory.is_dir():
        with Workflow(context(dialect, _place(), session_name=session)) as flow:
            flow.kill_all()
        shutil.rmtree(directory, ignore_errors=True)


_WAITS = {"test_candidate_machines": "jobs wait for machines that may be added yet"}
PBS = _site("openpbs", "PBS", _WAITS)
TORQUE = _site("torque", "TORQUE", _WAITS)
LSF = _site("lsf", "LSF")
FLUX = _site("flux", "FLUX", _WAITS)
