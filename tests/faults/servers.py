"""What stands between a program and a daemon of containers in tests: a proxy, sshd, certificates, an image registry."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.containers import IMAGE, lacking
from tests.faults.machine import PATIENCE, children_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

PROXY = "proxy"
"""The name of its threads."""
USER, PASSWORD = "wfl", "wfl-Secret-word"
_HASHED = "$2y$05$0MN6MMGXzpyE3H6oiWFJrurgL9Xqnhd2LLVwwcJbqePx8rjAJdOTi"
"""The password, as `htpasswd -nbB` writes it."""


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def needed(command: str, package: str) -> str:
    """Where a command is; the test is skipped, or fails, where it is not."""
    found = shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    return found or lacking(f"there is no command {command} here: install {package}")


def listens(port: int) -> bool:
    """Whether somebody does."""
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


class Proxy:
    """A daemon's unix socket at a port; `asks` and `answers` may change what passes, piece by piece."""

    def __init__(
        self,
        url: str,
        asks: Callable[[bytes], bytes] = lambda data: data,
        answers: Callable[[bytes], bytes] = lambda data: data,
    ) -> None:
        self._path, self._asks, self._answers = url.removeprefix("unix://"), asks, answers
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name=PROXY)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                far.connect(self._path)
                self._open += [near, far]
                for source, target, change in ((near, far, self._asks), (far, near, self._answers)):
                    self._threads.append(threading.Thread(target=_pass_on, args=(source, target, change), name=PROXY))
                    self._threads[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._open:
            sock.close()


def _pass_on(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(change(data))
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Certificates:
    """An authority with a server's certificate for 127.0.0.1 and a client's; named as the docker command has them."""

    def __init__(self, directory: Path) -> None:
        self._openssl = needed("openssl", "openssl")
        self.directory = directory
        for part in ("server", "client", "other"):
            (directory / part).mkdir()
        self._authority(directory / "authority")
        self.server = self._issue("server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        self.client = self._issue("client", "extendedKeyUsage=clientAuth\n")
        self._authority(directory / "authority")  # a new one, which nobody else knows
        self.other = self._issue("other", "extendedKeyUsage=clientAuth\n")

    def _authority(self, stem: Path) -> None:
        self._run(
            "req", "-x509", "-days", "2", "-subj", "/CN=authority", "-out", f"{stem}.pem", "-keyout", f"{stem}.key"
        )

    def _issue(self, name: str, extensions: str) -> Path:
        place, authority = self.directory / name, self.directory / "authority"
        (place / "extensions").write_text(extensions)
        self._run("req", "-subj", f"/CN={name}", "-out", f"{place}/request", "-keyout", f"{place}/key.pem")
        signed = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2")
        sign = ("x509", "-req", "-in", f"{place}/request", "-extfile", f"{place}/extensions", *signed)
        subprocess.run([self._openssl, *sign, "-out", f"{place}/cert.pem"], check=True, capture_output=True)
        shutil.copy(f"{authority}.pem", place / "ca.pem")
        return place

    def _run(self, *words: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        subprocess.run([self._openssl, words[0], *key, *words[1:]], check=True, capture_output=True)


class Sshd:
    """An sshd of our own, and an ssh command that has a user's configuration with the hosts `there` and `behind`.

    `behind` is reached by a jump over `there`; the host key of `stranger` is not known. What is run there finds the
    daemons at the addresses given.
    """

    def __init__(self, directory: Path, docker: str, podman: str) -> None:
        server, keygen, ssh = (
            needed("sshd", "openssh-server"),
            needed("ssh-keygen", "openssh-client"),
            needed("ssh", "ssh"),
        )
        self._directory, self.port = directory, free_port()
        for key in ("host", "id"):
            subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True)
        shutil.copy(directory / "id.pub", directory / "authorized_keys")
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        # Of several SetEnv lines only the first counts.
        (directory / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {directory}/host\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {directory}/authorized_keys\nPasswordAuthentication no\nUsePAM no\nMaxStartups 100\n"
            f"KbdInteractiveAuthentication no\nSetEnv DOCKER_HOST={docker} CONTAINER_HOST={podman}\n"
        )
        words = (directory / "host.pub").read_text().split()
        (directory / "known_hosts").write_text(f"known {words[0]} {words[1]}\n")
        own = f"Port {self.port}\nHostName 127.0.0.1\nIdentityFile {directory}/id\nIdentitiesOnly yes\n"
        (directory / "config").write_text(
            f"UserKnownHostsFile {directory}/known_hosts\nGlobalKnownHostsFile /dev/null\nLogLevel ERROR\n"
            f"Host there behind\nHostKeyAlias known\n{own}Host behind\nProxyJump there\nHost stranger\n{own}"
            # What a user may have for work at a terminal must not be in the way.
            "Host *\nRequestTTY force\nForwardAgent yes\n"
        )
        self.bin = directory / "bin"
        self.bin.mkdir()
        (self.bin / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {directory}/config "$@"\n')
        (self.bin / "ssh").chmod(0o755)
        with open(directory / "log", "wb") as log:
            command = [server, "-D", "-e", "-f", str(directory / "sshd_config")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until("sshd listens", lambda: self._process.poll() is not None or listens(self.port))
        if self._process.poll() is not None:
            lacking(f"sshd does not run: {(directory / 'log').read_text()}")

    @property
    def path(self) -> str:
        """PATH with our ssh command before all others."""
        return f"{self.bin}:{os.environ.get('PATH', os.defpath)}"

    def sessions(self) -> int:
        """The connections that it serves now, each by a process of its own."""
        return len(children_of(self._process.pid))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(PATIENCE)


class Registry:
    """An image registry that wants the password."""

    def __init__(self, directory: Path) -> None:
        command = needed("docker-registry", "docker-registry")
        self._directory, port = directory, free_port()
        self.address = f"127.0.0.1:{port}"
        (directory / "users").write_text(f"{USER}:{_HASHED}\n")
        (directory / "config").write_text(
            f"version: 0.1\nlog:\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n"
            f"    rootdirectory: {directory}/data\nhttp:\n  addr: {self.address}\n"
            f"auth:\n  htpasswd:\n    realm: wfl\n    path: {directory}/users\n"
        )
        with open(directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                [command, "serve", directory / "config"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until("the registry listens", lambda: self._process.poll() is not None or listens(port))
        if self._process.poll() is not None:
            lacking(f"docker-registry does not run: {(directory / 'log').read_text()}")

    def pulls(self, name: str) -> int:
        """How often an image was asked for with the password; a daemon that has it all does not go on from there."""
        lines = (self._directory / "log").read_text(errors="replace").splitlines()
        return sum(f'"HEAD /v2/{name}/manifests/' in line and '" 200 ' in line for line in lines)

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)


class Rootless:
    """Podman's service of an ordinary user (nobody), who has nothing but the one user number."""

    def __init__(self, image: bytes) -> None:
        podman, setpriv = needed("podman", "podman"), needed("setpriv", "util-linux")
        needed("runc", "runc")
        if os.getuid() != 0:
            lacking(f"an ordinary user's podman is started by root here, and this is user {os.getuid()}")
        self._directory = Path(tempfile.mkdtemp(prefix="wfl-", dir="/tmp"))
        self.runtime = self._directory / "run"
        (self.runtime / "podman").mkdir(parents=True)
        self.url = f"unix://{self.runtime}/podman/podman.sock"
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        (self._directory / "containers.conf").write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\nlock_type = "file"\n'
            f'[containers]\ndefault_ulimits = ["nofile={hard}:{hard}"]\n'
        )
        (self._directory / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\nrunroot = "{self.runtime}/c"\ngraphroot = "{self._directory}/images"\n'
        )
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._directory),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.runtime),
            "CONTAINERS_CONF": f"{self._directory}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self._directory}/storage.conf",
        }
        subprocess.run(["chown", "-R", "nobody:nogroup", self._directory], check=True)
        self._command = [setpriv, "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", podman]
        with open(self._directory / "log", "wb") as log:
            made = subprocess.run(
                [*self._command, "import", "-", IMAGE],
                input=image,
                env=self._environment,
                cwd=self._directory,
                stdout=log,
                stderr=log,
                timeout=4 * PATIENCE,
                check=False,
            )
            self._process = subprocess.Popen(
                [*self._command, "system", "service", "--time", "0", self.url],
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        socket_file = self.runtime / "podman" / "podman.sock"
        wait_until("podman listens", lambda: self._process.poll() is not None or socket_file.exists())
        if made.returncode != 0 or self._process.poll() is not None:
            words = (self._directory / "log").read_text(errors="replace")
            self.close()
            lacking(f"podman does not run as an ordinary user: {words}")

    def close(self) -> None:
        """End it, with the process that holds its user namespace, and remove all of it."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        mark = f"XDG_RUNTIME_DIR={self.runtime}\0".encode()
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if mark in Path(f"/proc/{name}/environ").read_bytes():
                    os.kill(int(name), signal.SIGKILL)
        shutil.rmtree(self._directory, ignore_errors=True)
