"""What wfl is compared to: a C program, xargs, the standard library's subprocess."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
TRUE = "/bin/true"


@cache
def c_program() -> str | None:
    """The path of spawn.c compiled; None (said once) where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        print("no C compiler: threads with subprocess.run stand in for the C program, its goals are open")
        return None
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "spawn"
    source = Path(__file__).with_name("spawn.c")
    subprocess.run([compiler, "-O2", "-pthread", "-o", str(program), str(source)], check=True)
    return str(program)


def c_rate(tasks: int) -> float:
    """Tasks a second of posix_spawn and waitpid on two threads; outputs are /dev/null, nothing is redirected."""
    program = c_program()
    assert program is not None
    command = [program, "rate", "2", str(tasks)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def c_latencies(samples: int) -> list[float]:
    """Microseconds from a child's clock to waitpid's return in the C program."""
    program = c_program()
    assert program is not None
    done = subprocess.run([program, "latency", str(samples)], stdout=subprocess.PIPE, check=True)
    return [float(line) for line in done.stdout.split()]


def xargs_rate(tasks: int) -> float:
    """Tasks a second of xargs, four at once, all into /dev/null."""
    numbers = "\n".join(map(str, range(tasks))).encode()
    begin = time.perf_counter()
    subprocess.run(["xargs", "-P4", "-n1", TRUE], input=numbers, stdout=subprocess.DEVNULL, check=True)
    return tasks / (time.perf_counter() - begin)


def threads_rate(tasks: int, *, kept: bool) -> float:
    """Tasks a second of subprocess.run in eight threads; kept: output and errors into two files of each task."""
    with tempfile.TemporaryDirectory(prefix="wfl-bench-") as place, ThreadPoolExecutor(8) as pool:
        begin = time.perf_counter()
        for _ in pool.map(lambda n: run_one(f"{place}/{n}" if kept else None), range(tasks)):
            pass
        return tasks / (time.perf_counter() - begin)


def run_one(path: str | None) -> None:
    """subprocess.run of one task, its output into files or nowhere."""
    if path is None:
        subprocess.run([TRUE], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return
    with open(f"{path}.out", "wb") as out, open(f"{path}.err", "wb") as err:
        subprocess.run([TRUE], stdout=out, stderr=err, check=True)


def subprocess_chain_ms(links: int) -> float:
    """Milliseconds of one subprocess.run after another, nothing redirected."""
    begin = time.perf_counter()
    for _ in range(links):
        subprocess.run([TRUE], check=True)
    return (time.perf_counter() - begin) * 1000 / links


def compiled() -> dict[str, str]:
    """An environment in which Python keeps what it has compiled, whatever this program's own says."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(BUILD / "pycache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def program_ms(code: str) -> float:
    """Milliseconds of a whole Python program."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=compiled())
    return (time.perf_counter() - begin) * 1000
