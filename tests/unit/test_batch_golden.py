"""What would be run for a template with everything in it, on each scheduler, as files: tests/data/batch/preview.

`python -m tests.unit.test_batch_golden` writes them anew.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wfl import JobTemplate
from wfl.contexts.batch.flux import FluxContext
from wfl.contexts.batch.gridengine import GridEngineContext
from wfl.contexts.batch.lsf import LsfContext
from wfl.contexts.batch.pbs import PbsContext
from wfl.contexts.batch.slurm import SlurmContext

if TYPE_CHECKING:
    from wfl.contexts.batch import BatchContext

FILES = Path(__file__).parent.parent / "data" / "batch" / "preview"
GIVEN: dict[str, Any] = {"directory": "/shared/wfl", "session_name": "golden"}
CONTEXTS: dict[str, BatchContext] = {
    "slurm": SlurmContext(**GIVEN),
    "gridengine": GridEngineContext(parallel_environment="smp", **GIVEN),
    "openpbs": PbsContext(dialect="openpbs", **GIVEN),
    "torque": PbsContext(dialect="torque", **GIVEN),
    "lsf": LsfContext(**GIVEN),
    "flux": FluxContext(**GIVEN),
}
ONE = JobTemplate(
    remote_command="train",
    args=("--name=it's", "a,b=c", "two\nlines\r", ""),
    job_environment={"QUOTED": "\"'$x`", "UID": "7"},
    working_directory="/shared/work dir",
    job_name="train it",
    input_path="data.csv",
    output_path="out.txt",
    error_path="err.txt",
    stage_in_files={"model": "/shared/model"},
    stage_out_files={"/shared/result": "result"},
    min_slots=4,
    max_slots=4,
    resource_limits={"WALLCLOCK_TIME": 5400, "OPEN_FILES": 512},
    queue_name="long",
    accounting_id="physics",
    start_time=datetime(2027, 1, 31, 12, 30, tzinfo=UTC),
)
MANY = JobTemplate(remote_command="/shared/bin/part", args=("$DRMAA2_INDEX$",), working_directory="/shared")


def shown(name: str) -> str:
    """The job and the array, where the clocks show UTC and no scheduler is asked for its limits."""
    context = CONTEXTS[name]
    with pytest.MonkeyPatch.context() as change:
        change.setenv("TZ", "UTC")
        change.setattr("wfl.contexts.batch.client.Client.highest", lambda _: None)
        time.tzset()
        previews = [*context.preview(ONE), *context.preview(MANY, range(2, 9, 3), max_parallel=2)]
    time.tzset()
    return "\n\n".join(str(preview).replace("\r", "\\r") for preview in previews)


@pytest.mark.parametrize("name", sorted(CONTEXTS))
def test_preview(name: str) -> None:
    """The exact command lines and scripts."""
    assert shown(name) == (FILES / f"{name}.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for name in CONTEXTS:
        (FILES / f"{name}.txt").write_text(shown(name), encoding="utf-8")
