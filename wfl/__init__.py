"""wfl: job control for Python. One script, many systems: processes, containers, clusters, hosts.

```python
from wfl import Workflow

with Workflow() as flow:
    flow.run("make", "data").on_success_run("make", "model").on_failure(print).wait()
```
"""

import os as _os

from wfl.branch import Branches
from wfl.completed import as_completed
from wfl.context import Context
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate, MachineInfo, QueueInfo
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    ImplementationSpecificError,
    InternalError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    JobFailedError,
    OutOfResourceError,
    SessionManagementError,
    TimeoutError,
    TryLaterError,
    UnsupportedAttributeError,
    UnsupportedOperationError,
    WflError,
)
from wfl.job import Job
from wfl.matrix import Replacement
from wfl.monitoring import MonitoringSession
from wfl.notifier import Notifier
from wfl.observer import Observer
from wfl.retry import Backoff
from wfl.session import JobSession
from wfl.shell import shell
from wfl.task import Task, TaskArray
from wfl.template import Template, env_sequence, time_ticks
from wfl.workflow import Workflow

__all__ = [
    "Backoff",
    "Branches",
    "Capability",
    "Context",
    "DeniedByDrmsError",
    "DrmCommunicationError",
    "ImplementationSpecificError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidSessionError",
    "InvalidStateError",
    "Job",
    "JobFailedError",
    "JobInfo",
    "JobSession",
    "JobState",
    "JobTemplate",
    "MachineInfo",
    "MonitoringSession",
    "Notifier",
    "Observer",
    "OutOfResourceError",
    "QueueInfo",
    "Replacement",
    "SessionManagementError",
    "Task",
    "TaskArray",
    "Template",
    "TimeoutError",
    "TryLaterError",
    "UnsupportedAttributeError",
    "UnsupportedOperationError",
    "WflError",
    "Workflow",
    "as_completed",
    "env_sequence",
    "shell",
    "time_ticks",
]

if _level := _os.environ.get("WFL_LOGLEVEL"):
    import logging as _logging

    _logging.basicConfig()
    try:
        _logging.getLogger("wfl").setLevel(_level.upper())
    except ValueError:
        _logging.getLogger("wfl").warning("WFL_LOGLEVEL is %r, expected DEBUG, INFO, WARNING or ERROR", _level)
