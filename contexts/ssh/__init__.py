"""SshContext: jobs run on other machines, over SSH; nothing of ours is installed there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wfl.context import Context, check_session_name
from wfl.contexts import settings as checked
from wfl.errors import InvalidArgumentError
from wfl.extras import needed

if TYPE_CHECKING:
    from wfl.backend import Backend, Monitor
    from wfl.contexts.ssh.line import Speaks
    from wfl.contexts.ssh.login import Login
    from wfl.contexts.ssh.there import There

_WHY = "jobs on hosts over SSH need paramiko"


class SshContext(Context):
    """Run jobs on one or several hosts that one can log in to (extra: `wfl-sdk[ssh]`).

    Besides the settings of every Context:
    hosts: one or several, each `[user@]host[:port]` or a Host of ~/.ssh/config; a text may have several between commas.
    slots: how many slots of tasks run at once on each host, or a dict of host to number; None: no limit.
    config: the ssh command's configuration file, of which HostName, User, Port, IdentityFile, CertificateFile,
    IdentitiesOnly, IdentityAgent, UserKnownHostsFile, HostKeyAlias, ProxyJump, ProxyCommand, Match and Include are
    honoured; None: no such file.
    identity_file: a private key, instead of those of the configuration; a certificate is found beside it (-cert.pub).
    passphrase: of an encrypted key; an agent (ssh-add) is better.
    known_hosts: a file of hosts' keys, instead of those of the configuration. A host whose key is not known is refused.
    directory: where jobs' directories are kept on the hosts; relative to the user's home there.
    shell: the POSIX shell that is used there, with its options.
    timeout: seconds that a host may take to answer.
    lease: seconds after which a host ends the jobs of a program that it hears nothing of, unless detach is True.

    Paths of a template (input_path, output_path, error_path, and this side of staging) are here, working_directory and
    the other side of staging are there, relative to the user's home.
    """

    name = "ssh"

    def __init__(
        self,
        hosts: str | Sequence[str],
        *,
        slots: int | Mapping[str, int] | None = None,
        config: str | os.PathLike[str] | None = "~/.ssh/config",
        identity_file: str | os.PathLike[str] | None = None,
        passphrase: str | None = None,
        known_hosts: str | os.PathLike[str] | None = None,
        directory: str = ".wfl/ssh",
        shell: str = "/bin/sh",
        timeout: float = 30.0,
        lease: float = 300.0,
        **settings: Any,
    ) -> None:
        self.hosts = _hosts(hosts)
        self.slots = _slots(slots, self.hosts)
        total = None if None in self.slots.values() else sum(filter(None, self.slots.values()))
        if total is not None and settings.get("max_parallel") is None:
            settings["max_parallel"] = total
        super().__init__(**settings)
        for name, path in (("directory", directory), ("shell", shell)):
            checked.text(name, path)
            if path is None:
                raise checked.wrong(name, path, "str")
        self.config = None if config is None else os.fspath(config)
        self.identity_file = None if identity_file is None else os.path.expanduser(identity_file)
        self.known_hosts = None if known_hosts is None else os.path.expanduser(known_hosts)
        self.passphrase, self.directory, self.shell = passphrase, directory, shell
        self.timeout, self.lease = checked.seconds("timeout", timeout), checked.seconds("lease", lease)

    def __repr__(self) -> str:
        """With the hosts."""
        return f"SshContext({', '.join(self.hosts)!r}, {super().__repr__().partition('(')[2]}"

    def logins(self) -> list[Login]:
        """How each host is logged in to."""
        with needed(self.name, _WHY):
            from wfl.contexts.ssh.login import logins
        return logins(self.hosts, self.config, key=self.identity_file, known_hosts=self.known_hosts)

    def speaks(self) -> Speaks:
        """How hosts are spoken to."""
        with needed(self.name, _WHY):
            from wfl.contexts.ssh.line import Speaks
        return Speaks(
            session=self.session_name,
            directory=self.directory,
            shell=self.shell,
            timeout=self.timeout,
            passphrase=self.passphrase,
        )

    def backend(self) -> Backend:
        """A new backend; nothing is contacted before the first job."""
        with needed(self.name, _WHY):
            from wfl.contexts.ssh.backend import SshBackend
        return SshBackend(self.logins(), self.slots, self.speaks(), lease=self.lease, detach=self.detach)

    def login_node(self) -> There:
        """The one host as the machine on which a scheduler's commands run."""
        with needed(self.name, _WHY):
            from wfl.contexts.ssh.there import There
        (login,) = self.logins()
        return There(login, self.speaks())

    def monitor(self) -> Monitor:
        """The hosts as machines, and all jobs below the directory on them."""
        with needed(self.name, _WHY):
            from wfl.contexts.ssh.monitor import SshMonitor
        return SshMonitor(self.logins(), self.speaks())


def clean(session_name: str, context: SshContext) -> int:
    """End all jobs that programs have left behind in a session on the context's hosts, and remove what is kept there.

    Returns how many had not ended. Those of a program that is still at work in this session end too.
    """
    import msgspec

    check_session_name(session_name)
    with needed(context.name, _WHY):
        from wfl.contexts.ssh.ending import clean_host
    speaks = msgspec.structs.replace(context.speaks(), session=session_name)
    return sum(clean_host(login, speaks) for login in context.logins())


def doctor(host: str, context: SshContext | None = None) -> list[str]:
    """What is missing on a host, or may surprise there, each in a line; none where all is well.

    `context` has the settings, for which a host need not be among its own. `python -m wfl.contexts.ssh HOST` shows it.
    """
    chosen = context or SshContext(host)
    with needed(chosen.name, _WHY):
        from wfl.contexts.ssh.doctor import findings
        from wfl.contexts.ssh.login import logins
    (login,) = logins((host,), chosen.config, key=chosen.identity_file, known_hosts=chosen.known_hosts)
    return findings(login, chosen.speaks())


def _hosts(given: str | Sequence[str]) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else given
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"hosts is {given!r}, expected a name or a list of names")
    found = tuple(name.strip() for name in names)
    if not found or not all(found):
        raise InvalidArgumentError(f"hosts is {given!r}, expected [user@]host[:port]")
    if len(set(found)) < len(found):
        raise InvalidArgumentError(f"hosts names one twice: {', '.join(found)}; give it more slots")
    return found


def _slots(given: int | Mapping[str, int] | None, hosts: Sequence[str]) -> dict[str, int | None]:
    if given is None:
        return dict.fromkeys(hosts)
    if not isinstance(given, Mapping):
        given = dict.fromkeys(hosts, given)
    if unknown := sorted(set(given) - set(hosts)):
        raise InvalidArgumentError(f"slots has {unknown[0]!r}, which is none of the hosts {', '.join(hosts)}")
    for host, number in given.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"slots of {host} is {number!r} ({type(number).__name__}), expected int")
        if number < 1:
            raise InvalidArgumentError(f"slots of {host} is {number}, expected 1 or more")
    return {host: given.get(host) for host in hosts}
