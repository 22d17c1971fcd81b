"""Running a scheduler's commands: with a time limit, in a language and a time format that can be read."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

from wfl.contexts.batch.machine import HERE
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wfl.contexts.batch.machine import Machine


class Commands:
    """Runs commands. `down` tells from an error's words that the scheduler was not reached, so that nobody knows.

    Raises DrmCommunicationError where there is no answer, DeniedByDrmsError with the command's words where it refuses,
    and SessionManagementError where there is no such command.
    """

    def __init__(
        self,
        name: str,
        *,
        site: Mapping[str, str],
        answers: Mapping[str, str],
        down: Callable[[str], bool],
        timeout: float,
        leads: str | None = None,
        machine: Machine = HERE,
    ) -> None:
        """`site`: variables that lead to the scheduler; `answers`: those that give its answers a form we can read.

        One that is empty there is not set at all: squeue would choose nothing by it. `leads`: the variable with the
        path of a file that the commands look for so long that it says more to look before them.
        """
        self._name, self._site, self._answers, self._down, self.timeout = name, site, answers, down, timeout
        self._leads, self._answered, self.machine = leads, False, machine
        self._lock = threading.Lock()
        self.count = 0
        """Commands that were run."""

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        despite: Callable[[str], bool] | None = None,
    ) -> str:
        """The output of a command that ends with 0, or `despite` what its error says.

        `env`: its environment, as `environment` gives it.
        """
        with self._lock:
            self.count += 1
        env = self._questioning() if env is None else env
        self._look(env)
        try:
            done = self.machine.run(argv, env, self.timeout)
        except FileNotFoundError as error:
            where = self.machine.name
            words = f"{self._name}: there is no command {argv[0]} {where}: run this on a machine that can submit jobs"
            raise SessionManagementError(words) from error
        except subprocess.TimeoutExpired as error:
            said = " ".join((error.stderr or b"").decode(errors="replace").split())
            words = f"{self._name}: {argv[0]} did not answer within {self.timeout:g} s"
            raise DrmCommunicationError(f"{words}: {said[-500:]}" if said else words) from error
        except OSError as error:
            raise DrmCommunicationError(f"{self._name}: {argv[0]} cannot be run: {error.strerror}") from error
        output = done.stdout.decode(errors="replace")
        if done.returncode == 0:
            self._answered = True
            return output
        words = " ".join((done.stderr or done.stdout).decode(errors="replace").split()) or f"status {done.returncode}"
        if done.returncode < 0 or self._down(words):
            raise DrmCommunicationError(f"{self._name}: {argv[0]}: {words[-500:]}")
        if despite is not None and despite(words):
            return output
        raise DeniedByDrmsError(f"{self._name}: {argv[0]}: {words[-500:]}")

    def _look(self, env: Mapping[str, str]) -> None:
        """Before the first answer; later the file may be away for a moment, when it is replaced."""
        path = env.get(self._leads or "")
        if path and not self._answered and not self.machine.exists(path):
            where = self.machine.name
            raise SessionManagementError(f"{self._name}: {self._leads} is {path}, and there is no such file {where}")

    def _questioning(self) -> dict[str, str]:
        """For a command whose answer is read."""
        found = {**self.environment(), **self._answers}
        return {name: value for name, value in found.items() if value or name not in self._answers}

    def environment(self, kept: tuple[str, ...] | None = None) -> dict[str, str]:
        """The machine's, with what leads to the scheduler; of it only what every login has, and names that begin so."""
        found = {**self.machine.environment(), **self._site}
        if kept is None:
            return found
        return {name: value for name, value in found.items() if name in LOGIN or name.startswith(kept)}


LOGIN = frozenset({"HOME", "LOGNAME", "PATH", "SHELL", "USER"})
