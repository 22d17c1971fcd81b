"""The sshd of the tests: whether it is there, what leads to it, and its absence."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.clusters import variables
from tests.containers import lacking

ROOT, USER = "wfl-root", "wfl-user"
"""Hosts of its configuration: there one is root, or the ordinary user."""
JUMP, PROXY = "wfl-jump", "wfl-proxy"
"""The ordinary user behind ROOT, by ProxyJump and by ProxyCommand."""
SECRET, CERTIFICATE = "wfl-secret", "wfl-cert"
"""Root, with a key that has a passphrase, which no agent knows; with a certificate, without which its key is none."""
HOSTS = (ROOT, USER, JUMP, PROXY, SECRET, CERTIFICATE)
MAX_SESSIONS = 10
"""How many channels it serves over one connection."""
MAX_STARTUPS = 10
"""From how many connections on that have not logged in yet it may refuse another."""
ANSWER = 60.0
"""Seconds that it may take to answer."""


@dataclass(frozen=True)
class Sshd:
    """What is known of the sshd that `make services` starts, whether it is there or not."""

    directory: Path
    port: int
    user: str
    """The ordinary user's name."""
    host: str = "127.0.0.1"

    @property
    def config(self) -> Path:
        """What `ssh -F` takes: the configuration that knows HOSTS."""
        return self.directory / "config"

    @property
    def known_hosts(self) -> Path:
        """The host's key, for 127.0.0.1 and for localhost."""
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        """The private key that both users may log in with."""
        return self.directory / "id"

    @property
    def secret_key(self) -> Path:
        """Another, which has a passphrase."""
        return self.directory / "id_secret"

    @property
    def passphrase(self) -> str:
        """That passphrase."""
        return (self.directory / "id_secret.passphrase").read_text().strip()

    @property
    def certified_key(self) -> Path:
        """A key that is not known itself: its certificate is, which the authority has signed for both users."""
        return self.directory / "id_cert"

    @property
    def certificate(self) -> Path:
        """That certificate."""
        return self.directory / "id_cert-cert.pub"

    @property
    def authority(self) -> Path:
        """The private key that certificates are signed with."""
        return self.directory / "ca"

    @property
    def home(self) -> Path:
        """The ordinary user's, which nobody else may look into but root."""
        return self.directory / "home"

    @property
    def busybox(self) -> Path:
        """A directory with all commands that busybox has, and no others: a PATH, with `sh` in it."""
        return self.directory / "busybox"

    @property
    def log(self) -> Path:
        """What sshd tells of connections, logins and sessions."""
        return self.directory / "log" / "sshd.log"

    def command(self, host: str, *words: str) -> list[str]:
        """The ssh command that runs these words there, without questions."""
        return ["ssh", "-F", str(self.config), "-o", "BatchMode=yes", host, *words]

    def why_not(self) -> str:
        """Why nobody can log in, or nothing where both users can."""
        if not self.config.exists() or shutil.which("ssh") is None:
            return "no sshd is here: make services"
        try:
            for host in (ROOT, USER):
                command = self.command(host, "true")
                subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=ANSWER
                )
        except (OSError, subprocess.SubprocessError) as error:
            return f"sshd does not answer: {str(getattr(error, 'stderr', '') or error).strip()}"
        return ""


def settings() -> Sshd:
    """Those of the sshd that `make services` starts, whether it is there or not."""
    found = variables("sshd")
    return Sshd(Path(found["WFL_SSHD"]), int(found["WFL_SSHD_PORT"]), found["WFL_SSHD_USER"])


def reached() -> Sshd:
    """The same of one that answers. Skips, or fails, where there is none."""
    found = settings()
    if reason := found.why_not():
        lacking(reason)
    return found


def home(directory: Path) -> dict[str, str]:
    """Make this the home of programs that are to log in: it knows node1, with the ordinary user, and node2, with root.

    HOME for them. Skips, or fails, where there is no sshd that answers.
    """
    service = reached()
    lines = [
        f"Host node1\n    User {service.user}",
        "Host node2\n    User root",
        f"Host node*\n    HostName {service.host}\n    Port {service.port}",
        f'    IdentityFile "{service.key}"\n    IdentitiesOnly yes',
        f"    UserKnownHostsFile {service.known_hosts}\n    GlobalKnownHostsFile /dev/null",
    ]
    (directory / ".ssh").mkdir(mode=0o700)
    (directory / ".ssh" / "config").write_text("\n".join([*lines, ""]))
    return {"HOME": str(directory)}
