"""DrmaaContext: jobs through a scheduler's DRMAA library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wfl.contexts.batch.context import ClusterContext
from wfl.errors import SessionManagementError

if TYPE_CHECKING:
    from wfl.contexts.drmaa.backend import DrmaaBackend


class DrmaaContext(ClusterContext):
    """Run each job through the scheduler's libdrmaa (extra: `wfl-sdk[drmaa]`), on a machine that can submit jobs.

    Besides the settings of every cluster (`wfl.contexts.batch.ClusterContext`):
    contact: what an earlier program's `DrmaaContext.attached_to()` was, to be told of the ends of its jobs too; None: a
    session of its own. Jobs of earlier programs are found either way, by the directory.
    parallel_environment, memory_resource, memory_per_slot, gpu_resource: of a Grid Engine, as GridEngineContext has
    them.

    The library is found by DRMAA_LIBRARY_PATH. On Grid Engine everything that GridEngineContext honours is honoured;
    other schedulers have what DRMAA 1 has a name for, and their own options by the extension native. A process has one
    session with the library, which its workflows share; in a forked child the library cannot be used.
    """

    name = "drmaa"

    def __init__(
        self,
        *,
        contact: str | None = None,
        parallel_environment: str | None = None,
        memory_resource: str = "h_vmem",
        memory_per_slot: bool = True,
        gpu_resource: str = "gpu",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.contact = contact
        self._of_grid_engine = {
            "parallel_environment": parallel_environment,
            "memory_resource": memory_resource,
            "memory_per_slot": memory_per_slot,
            "gpu_resource": gpu_resource,
        }

    @staticmethod
    def attached_to() -> str | None:
        """The contact of this process's session with the library; None while it has none."""
        from wfl.contexts.drmaa.library import connection

        return connection.contact

    def backend(self) -> DrmaaBackend:
        """A new backend; the library is loaded, and nothing is contacted."""
        from wfl.contexts.drmaa.library import connection

        return self._backend(connection.system())

    def _backend(self, system_name: str) -> DrmaaBackend:
        from wfl.contexts.batch.gridengine import GridEngine
        from wfl.contexts.drmaa import system
        from wfl.contexts.drmaa.backend import DrmaaBackend

        scheduler = system.scheduler(system_name, **self._of_grid_engine)
        return DrmaaBackend(
            scheduler,
            contact=self.contact,
            directory=self.directory,
            session_name=self.session_name,
            timeout=60.0,
            environment={},
            inherit=self.inherit_environment,
            # Nothing but Grid Engine's commands could end the jobs of a program that was killed.
            detach=self.detach or not isinstance(scheduler, GridEngine),
        )

    def _shower(self) -> DrmaaBackend:
        try:
            return self.backend()
        except SessionManagementError:
            return self._backend("SGE")
