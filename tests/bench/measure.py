"""How things are measured: sides in turn, medians, goals, and what a process has used. Knows nothing of wfl."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import psutil

Sides = Mapping[str, Callable[[], float]]


@dataclass(frozen=True)
class Scale:
    """How much is measured: all of it, or with `quick` just enough to see that the bench works."""

    quick: bool

    def of(self, full: int, quick: int) -> int:
        """The number for this scale."""
        return quick if self.quick else full

    @property
    def rounds(self) -> int:
        """How often each side has its turn."""
        return self.of(5, 3)


@dataclass(frozen=True)
class Goal:
    """A bound on a row's ratio, or on its value where it has no reference."""

    sense: Literal["at least", "at most"]
    bound: float
    unit: str = ""

    def met(self, figure: float) -> bool:
        """Whether this figure keeps to it."""
        return figure >= self.bound if self.sense == "at least" else figure <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.sense == 'at least' else '≤'} {self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Row:
    """One figure, with what it is compared to. Without a goal it is there to be read."""

    what: str
    value: float
    unit: str
    reference: str = ""
    reference_value: float | None = None
    ratio: float | None = None
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.goal.met(self.value if self.ratio is None else self.ratio)

    def __str__(self) -> str:
        text = f"  {self.what:<46} {number(self.value):>9} {self.unit:<6}"
        if self.ratio is not None and self.reference_value is not None:
            text += f" {self.ratio:5.2f} × {self.reference} ({number(self.reference_value)})"
        elif self.reference:
            text += f" {self.reference}"
        if self.goal is not None:
            text += f"   goal {self.goal}: {'met' if self.met else 'NOT MET'}"
        return text


def number(value: float) -> str:
    """Three figures or more, with thousands set off."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def in_turn(sides: Sides, rounds: int) -> dict[str, list[float]]:
    """Measure every side once a round. Each round begins with another side, so that drift meets all alike."""
    figures: dict[str, list[float]] = defaultdict(list)
    names = list(sides)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            figures[name].append(sides[name]())
    return figures


def row(
    what: str,
    unit: str,
    figures: Sequence[float],
    reference: tuple[str, Sequence[float]],
    goal: Goal | None = None,
) -> Row:
    """Medians of both (the reference has its name beside it), and the median of the ratios of the rounds."""
    name, others = reference
    ratios = [one / other for one, other in zip(figures, others, strict=True)]
    return Row(what, median(figures), unit, name, median(others), median(ratios), goal)


def percentile(figures: Sequence[float], share: float) -> float:
    """The figure below which this share of all lies."""
    return sorted(figures)[min(len(figures) - 1, int(len(figures) * share))]


# -- what processes use ------------------------------------------------------------------------------------------------


def keepers() -> list[psutil.Process]:
    """The keepers of this program."""
    return [child for child in psutil.Process().children() if is_keeper(child)]


def is_keeper(process: psutil.Process) -> bool:
    """Whether a child of this program is a keeper, by its command line."""
    try:
        return any("import keeper" in word for word in process.cmdline())
    except psutil.Error:
        return False


def cpu_us(process: psutil.Process) -> float:
    """CPU time of a process with one thread, in µs: exact where the system counts it, else in clock ticks."""
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_bytes().split()[0]) / 1000
    except (OSError, IndexError):
        times = process.cpu_times()
        return (times.user + times.system) * 1e6


def children_us(process: psutil.Process) -> float:
    """CPU time of the children that a process has waited for, in µs."""
    times = process.cpu_times()
    return float(times.children_user + times.children_system) * 1e6


def resident_mib(process: psutil.Process) -> float:
    """Resident memory, in MiB; pages shared with others count in full."""
    return float(process.memory_info().rss) / (1 << 20)


def proportional_mib(process: psutil.Process) -> float:
    """Resident memory in MiB; a page shared by n processes counts 1/n."""
    return float(process.memory_full_info().pss) / (1 << 20)


def peak_mib(process: psutil.Process) -> float:
    """The highest resident memory that a process ever had, in MiB."""
    for line in Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resident_mib(process)
