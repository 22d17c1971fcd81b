"""What the contexts of all schedulers have in common, and those that are used through their commands in particular."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from wfl.context import Context, check_session_name
from wfl.contexts import settings as checked
from wfl.drmaa2 import JobTemplate
from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from wfl.contexts.batch.engine import BatchBackend, Preview
    from wfl.contexts.batch.machine import Machine
    from wfl.contexts.batch.scheduler import Scheduler
    from wfl.contexts.ssh import SshContext


class ClusterContext(Context):
    """A scheduler of a cluster, used by an ordinary user on a machine that can submit jobs.

    Besides the settings of every Context:
    directory: where scripts and output are kept, on a file system that the cluster's machines share; None: below
    ~/.wfl, with the context's name.
    detach: True unless said otherwise: the scheduler remembers the jobs, and a place in its queue is worth keeping.
    inherit_environment: True gives jobs the program's environment; else they have what the site gives to every login,
    and what the template says.
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        detach: bool = True,
        inherit_environment: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(detach=detach, **settings)
        checked.flag("inherit_environment", inherit_environment)
        if directory == "":
            raise InvalidArgumentError("directory is empty, expected a path on a file system that the machines share")
        self.directory = self._absolute(f"~/.wfl/{self.name}" if directory is None else os.fspath(directory))
        self.inherit_environment = inherit_environment

    def _absolute(self, directory: str) -> str:
        return os.path.abspath(os.path.expanduser(directory))

    def __repr__(self) -> str:
        """With the directory, without which nobody finds the session's jobs."""
        return f"{super().__repr__()[:-1]}, directory={self.directory!r})"

    @abstractmethod
    def backend(self) -> BatchBackend:
        """A new backend; nothing is contacted before the first job."""

    def _shower(self) -> BatchBackend:
        """A backend that only shows what it would do."""
        return self.backend()

    def preview(
        self, template: JobTemplate, indexes: range | int | None = None, max_parallel: int | None = None
    ) -> list[Preview]:
        """What would be run for a template, or for an array of it: the command line and the script, nothing else.

        Several where an array is longer than the scheduler takes, whose limit is asked for, and where it has no arrays
        or the elements differ. KEY, ID and running numbers stand for those that the jobs would have. Through libdrmaa
        it is the attributes instead of a command line; where there is no library, as they would be on Grid Engine.
        """
        numbers = range(1, indexes + 1) if isinstance(indexes, int) else indexes
        backend = self._shower()
        return backend.preview(self.submissions(backend, template, numbers), max_parallel)


class BatchContext(ClusterContext):
    """A scheduler that is used through its commands.

    Besides the settings of every cluster (`ClusterContext`):
    timeout: seconds that one of the scheduler's commands may take.
    environment: variables that lead the scheduler's commands to it, such as SLURM_CONF, besides the program's own.
    via: a login node on which the commands run, over SSH: an SshContext with one host, or that host (extra
    `wfl-sdk[ssh]`). Its settings on the connection count (config, identity_file, passphrase, known_hosts, shell,
    timeout), and those on jobs do not. Then `directory` and all paths of a template are there, relative ones below the
    user's home, but sources of stage_in_files and targets of stage_out_files, which are here.
    """

    def __init__(
        self,
        *,
        timeout: float = 60.0,
        environment: Mapping[str, str] | None = None,
        via: SshContext | str | None = None,
        **settings: Any,
    ) -> None:
        self.via = _login_node(via)
        super().__init__(**settings)
        if self.via is not None and self.inherit_environment:
            words = "inherit_environment: the program's environment is not that of jobs submitted via another machine"
            raise InvalidArgumentError(f"{words}; name what they need in job_environment")
        if environment is not None and not isinstance(environment, Mapping):
            raise checked.wrong("environment", environment, "a dict")
        for name, value in (environment or {}).items():
            if not isinstance(value, str):
                raise checked.wrong(f"environment: {name}", value, "str")
        self.timeout, self.environment = checked.seconds("timeout", timeout), dict(environment or {})

    def _absolute(self, directory: str) -> str:
        return super()._absolute(directory) if self.via is None else directory.removeprefix("~/")

    def __repr__(self) -> str:
        """With the login node."""
        return super().__repr__() if self.via is None else f"{super().__repr__()[:-1]}, via={self.via.hosts[0]!r})"

    def machine(self) -> Machine:
        """Where the commands run; nothing is contacted."""
        if self.via is None:
            from wfl.contexts.batch.machine import HERE

            return HERE
        return self.via.login_node()

    @abstractmethod
    def scheduler(self) -> Scheduler:
        """The scheduler's language."""

    def backend(self) -> BatchBackend:
        """A new backend; nothing is contacted before the first job."""
        from wfl.contexts.batch.engine import BatchBackend

        machine = self.machine()
        return BatchBackend(
            self.scheduler_of(machine),
            directory=self.directory,
            session_name=self.session_name,
            timeout=self.timeout,
            environment=self.environment,
            inherit=self.inherit_environment,
            detach=self.detach,
            machine=machine,
        )

    def scheduler_of(self, machine: Machine) -> Scheduler:
        """The same, where a machine has to be asked what it speaks."""
        del machine
        return self.scheduler()


def _login_node(given: SshContext | str | None) -> SshContext | None:
    if given is None:
        return None
    from wfl.contexts.ssh import SshContext

    if not isinstance(given, SshContext | str):
        raise checked.wrong("via", given, "an SshContext or a host")
    found = SshContext(given) if isinstance(given, str) else given
    if len(found.hosts) > 1:
        raise InvalidArgumentError(f"via has {len(found.hosts)} hosts, expected one login node: {found.hosts}")
    return found


def clean(session_name: str, context: ClusterContext) -> int:
    """End all jobs that programs have left behind in a session, and remove what is kept of it.

    Returns how many jobs and arrays had not ended. `context` tells the scheduler and the directory. Those of a program
    that is still at work in this session end too. The scheduler is told to end them; this does not wait until it has.
    Raises DrmCommunicationError, and leaves all as it is, where the scheduler does not answer.
    """
    from wfl.contexts.batch.ending import end_session

    chosen = copy(context)
    chosen.session_name = check_session_name(session_name)
    backend = chosen.backend()
    try:
        return end_session(backend.client, backend.place)
    finally:
        backend.close(end=False)
