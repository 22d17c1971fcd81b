"""ProcessContext: jobs run as processes of this machine, started and ended by a keeper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wfl.context import Context
from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from wfl.backend import Backend, Monitor


class ProcessContext(Context):
    """Run jobs as operating-system processes.

    Besides the settings of every Context:
    inherit_environment: False starts tasks with nothing in their environment but what the template says (and JOB_ID,
    TASK_ID). One template can decide otherwise with extensions={"inherit_environment": "true"} or "false".
    detach: needs a store, where the ends of tasks are recorded while no program is there.
    """

    name = "process"

    def __init__(self, *, inherit_environment: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        if self.detach and self.store is None:
            raise InvalidArgumentError("detach=True needs store=PATH: processes keep no record of themselves")
        self.inherit_environment = inherit_environment

    def backend(self) -> Backend:
        """A new set of keepers, none of which runs yet."""
        from wfl.contexts.process.backend import ProcessBackend

        return ProcessBackend(detach=self.detach, inherit_environment=self.inherit_environment)

    def monitor(self) -> Monitor:
        """This machine, and the tasks of all programs on it, as far as this user may see them."""
        from wfl.contexts.process.monitor import ProcessMonitor

        return ProcessMonitor()
