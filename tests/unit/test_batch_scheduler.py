"""What the schedulers' words in an error mean: every scheduler, asked the same questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from wfl.contexts.batch.flux import Flux
from wfl.contexts.batch.gridengine import GridEngine
from wfl.contexts.batch.lsf import Lsf
from wfl.contexts.batch.pbs import Pbs
from wfl.contexts.batch.slurm import Slurm

if TYPE_CHECKING:
    from wfl.contexts.batch.scheduler import Scheduler


@pytest.mark.parametrize(
    ("scheduler", "words", "expected"),
    [
        (Flux(), "flux-jobs: ERROR: Unable to connect to Flux: broker socket was not found", "down"),
        (Flux(), "flux-submit: ERROR: invalid time", ""),
        (Flux(), "flux-cancel: f1: job is inactive", "unknown"),
        (Flux(), "JobID f9 unknown", "partly"),
        (Flux(), "flux-jobs: ERROR: Unknown format field", ""),
        (GridEngine(), "error: commlib error: got select error (Connection refused)", "down"),
        (GridEngine(), "Unable to run job: unable to send message to qmaster: got send error Exiting.", "down"),
        (GridEngine(), 'error: unable to contact qmaster using port 6444 on host "h"', "down"),
        (GridEngine(), 'Unable to run job: unknown resource "nosuch" Exiting.', ""),
        (GridEngine(), 'Unable to run job: job requests unknown queue "nosuch.q" Exiting.', ""),
        (GridEngine(), "Unable to run job: you tried to submit a job with more than 75000 tasks Exiting.", ""),
        (GridEngine(), "Unable to run job: only 5 jobs are allowed per user", "busy"),
        (GridEngine(), 'denied: job "777" does not exist', "unknown"),
        (GridEngine(), 'invalid queue or job "777"', "unknown"),
        (GridEngine(), "error: job id 10 not found", "unknown partly"),
        (GridEngine(), "/sge/accounting: No such file or directory", ""),
        (Lsf(), "Cannot connect to LSF. Please wait ...", "down"),
        (Lsf(), "bjobs: Batch system concurrent query limit exceeded", "down"),
        (Lsf(), "Job <7>: Job has already finished", "unknown"),
        (Lsf(), "Job <7>: No matching job found", "unknown partly"),
        (Lsf(), "Job <7>: User permission denied", ""),
        (Lsf(), "No unfinished job found", "partly"),
        (Lsf(), "Job <7> is not found", "unknown partly"),
        (Lsf(), "Bad -o format", ""),
        (Pbs(), "Connection refused\nqstat: cannot connect to server pbs (errno=15010)", "down"),
        (Pbs(), "qsub: Invalid credential", "down"),
        (Pbs(), "qsub: Unknown queue", ""),
        (Pbs(), "qdel: Job has finished 12.server", "unknown"),
        (Pbs(), "qdel: Unknown Job Id 12.server", "unknown partly"),
        (Pbs(), "qsig: Unauthorized Request 12.server", ""),
        (Pbs(), "qstat: PBS is not configured to maintain job history", ""),
        (Slurm(), "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", "down"),
        (Slurm(), "scancel: error: Kill job error on job id 7: Job/step already completing or completed", "unknown"),
        (Slurm(), "Slurm accounting storage is disabled", "keeps_none"),
    ],
)
def test_words_of_errors(scheduler: Scheduler, words: str, expected: str) -> None:
    """A scheduler that was not reached is told from one that says no, and a job that has ended from both."""
    asked = [scheduler.down, scheduler.busy, scheduler.unknown, scheduler.partly]
    if isinstance(scheduler, GridEngine | Slurm):  # else any refusal of a record is that
        asked += [scheduler.keeps_none]
    assert " ".join(question.__name__ for question in asked if question(words)) == expected
