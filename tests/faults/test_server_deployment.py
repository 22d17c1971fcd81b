"""The job server as it is run: by systemd's unit and the Containerfile of its page, and behind a reverse proxy."""

from __future__ import annotations

import http.client
import http.server
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pip
import pytest

from tests.asgi import until
from tests.containers import address, lacking, settings_of
from tests.docs.blocks import blocks_of
from tests.faults.machine import wait_until
from tests.server import PATIENCE, Running
from wfl import JobState, Workflow, shell
from wfl.contexts.remote import RemoteContext
from wfl.server import __main__ as command

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FILES = {block.title: block.source for block in blocks_of(ROOT / "docs" / "server.md") if block.title}
"""What the page has for people to copy."""


# -- systemd --


def test_unit_of_systemd(tmp_path: Path) -> None:
    """Its command line is one that the server takes; systemd has no complaint of the file, where it is installed."""
    unit = FILES["wfl-server.service"]
    (line,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.MULTILINE)
    python, *words = shlex.split(line.replace("\\\n", " "))
    assert words[:2] == ["-m", "wfl.server"]
    options = command._parser().parse_args(words[2:])  # noqa: SLF001 - what the command takes
    (place,) = re.findall(r"^StateDirectory=(.*)$", unit, re.MULTILINE)
    assert options.directory == f"/var/lib/{place}"
    assert "KillMode=process" in unit.splitlines(), "jobs outlive the server"
    assert not re.search("^PrivateTmp=", unit, re.MULTILINE), "and systemd would remove their /tmp"
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("there is no systemd-analyze here, which comes with systemd")
    file = tmp_path / "wfl-server.service"
    file.write_text(unit.replace(python, sys.executable))
    done = subprocess.run([verify, "verify", "--man=no", file], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "wfl-server" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


# -- a container --


@pytest.fixture(scope="module")
def docker() -> Iterator[Any]:
    """Docker's daemon of `make services`, asked directly."""
    url = address("docker")
    settings_of(url)
    import docker

    api = docker.APIClient(base_url=url, version="1.41", timeout=10 * PATIENCE)
    yield api
    api.close()


def wheels(directory: Path) -> None:
    """This tree as a wheel, and what the extra needs for the Python of the image, so that its build asks nobody."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(directory), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    fetch = [
        "download",
        "--dest",
        str(directory),
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        f"{wheel}[server]",
    ]
    done = subprocess.run([sys.executable, "-m", "pip", *fetch], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def libraries(directory: Path) -> str:
    """The C library's parts that wheels may ask for by their old names, and where this machine has them."""
    library = sys.modules["msgspec._core"].__file__ or ""
    told = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    found = [Path(path) for path in re.findall(r"=> (/\S+)", told)]
    directory.mkdir()
    for path in found:
        shutil.copy(path, directory)
    return str(found[0].parent)


@pytest.fixture(scope="module")
def image(docker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image of the page's Containerfile. Its base is this machine's Python with pip, which finds our wheels."""
    if not docker.images("python:3.11"):
        lacking("the image python:3.11 is not there")
    place, mark = tmp_path_factory.mktemp("image"), uuid.uuid4().hex[:8]
    (place / "wheels").mkdir()
    wheels(place / "wheels")
    shutil.copytree(Path(pip.__file__).parent, place / "pip", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "Base").write_text(
        "FROM python:3.11\nCOPY pip /usr/local/lib/python3.11/site-packages/pip\nCOPY wheels /wheels\n"
        f"COPY libraries {libraries(place / 'libraries')}/\n"
        "ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels\n"
    )
    (place / "Containerfile").write_text(FILES["Containerfile"])
    names = [f"wfl-test-base:{mark}", f"wfl-test-server:{mark}"]
    try:
        for file, name in zip(("Base", "Containerfile"), names, strict=True):
            arguments = {"BASE": names[0]} if file == "Containerfile" else {}
            told = docker.build(
                str(place), tag=name, dockerfile=file, buildargs=arguments, rm=True, network_mode="none", decode=True
            )
            words = [part for part in told if "error" in part or "stream" in part]
            assert not [part for part in words if "error" in part], words
        yield names[1]
    finally:
        for name in reversed(names):
            with suppress(Exception):
                docker.remove_image(name, force=True)


class Container:
    """A server in a container, with a volume for its directory."""

    def __init__(self, docker: Any, image: str, mark: str) -> None:
        self._docker, self._image, self._volume = docker, image, mark
        self.host = docker.create_host_config(binds=[f"{mark}:/data"], port_bindings={8080: ("127.0.0.1",)}, init=True)
        self.id = ""

    def run(self, *words: str) -> str:
        """Run a command of the image to its end; what it prints."""
        made = self._docker.create_container(self._image, list(words), host_config=self.host)["Id"]
        self._docker.start(made)
        status = self._docker.wait(made)["StatusCode"]
        printed = self._docker.logs(made, stderr=False).decode()
        assert status == 0, self._docker.logs(made)
        self._docker.remove_container(made, v=True)
        return str(printed).strip()

    def start(self) -> str:
        """Start the server; its address."""
        health = {"test": ["NONE"]} if self.id else None  # the first one has the image's own
        if self.id:
            self._docker.remove_container(self.id, v=False, force=True)
        self.id = self._docker.create_container(self._image, host_config=self.host, ports=[8080], healthcheck=health)[
            "Id"
        ]
        self._docker.start(self.id)
        (published,) = self._docker.port(self.id, 8080)
        url = f"http://127.0.0.1:{published['HostPort']}"
        wait_until("the server answers", lambda: answers(url))
        return url

    def close(self) -> None:
        """Remove all of it."""
        with suppress(Exception):
            self._docker.remove_container(self.id, v=True, force=True)
        with suppress(Exception):
            self._docker.remove_volume(self._volume, force=True)


def answers(url: str) -> bool:
    """Whether a server says that it is alive."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().read() == b"ok\n"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@pytest.mark.timeout(600)
def test_container(docker: Any, image: str) -> None:
    """The Containerfile of the page is built and started: jobs run in it as nobody in particular, and it is remembered.

    It ends in time when it is told to, and a new one with the same volume knows the jobs of the one before.
    """
    server = Container(docker, image, f"wfl-test-{uuid.uuid4().hex[:8]}")
    try:
        token = server.run("token", "create", "alice", "--directory", "/data")
        url = server.start()
        with Workflow(RemoteContext(url, token=token, session_name="s", detach=True)) as flow:
            job = flow.run(shell("id -u; echo hello")).wait()
            assert job.output() == "1000\nhello"
            (first,) = flow.jobs()
        facts = docker.inspect_container(server.id)
        assert facts["Config"]["Healthcheck"]["Test"][0] == "CMD"
        check = docker.exec_create(server.id, facts["Config"]["Healthcheck"]["Test"][1:])["Id"]
        docker.exec_start(check)
        assert docker.exec_inspect(check)["ExitCode"] == 0
        began = time.monotonic()
        docker.stop(server.id, timeout=PATIENCE)
        assert docker.wait(server.id)["StatusCode"] == 0
        assert time.monotonic() - began < PATIENCE
        with Workflow(RemoteContext(server.start(), token=token, session_name="s", detach=True)) as flow:
            (again,) = flow.jobs()
            assert (again.state, again.output()) == (JobState.DONE, "1000\nhello")
            facts = [(info.id, info.finish_time) for job in (first, again) for info in job.infos()]
            assert facts[0] == facts[1]
    finally:
        server.close()


# -- a reverse proxy --


class Proxy(http.server.ThreadingHTTPServer):
    """A reverse proxy below /wfl: the server behind it is asked with that, or without."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, *, keeps: bool) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.port, self.keeps = port, keeps
        self.url = f"http://127.0.0.1:{self.server_address[1]}/wfl"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Passing(http.server.BaseHTTPRequestHandler):
    """One connection of a client: each request is passed on, each piece of the answer as it comes."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def pass_on(self) -> None:
        """Any method."""
        if not self.path.startswith("/wfl/"):
            self.send_error(404)
            return
        path = self.path if self.server.keeps else self.path.removeprefix("/wfl")
        headers = {name: text for name, text in self.headers.items() if name.lower() not in ("connection", "te")}
        headers |= {"X-Forwarded-For": "192.0.2.7", "Connection": "close"}
        body = self._body()
        behind = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=4 * PATIENCE)
        try:
            headers = {name: text for name, text in headers.items() if name.lower() != "transfer-encoding"}
            behind.request(self.command, path, body, headers)
            self._answer(behind.getresponse())
        except OSError:
            self.close_connection = True
        finally:
            behind.close()

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status)
        length = answer.getheader("Content-Length")
        for name, text in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, text)
        if length is None and self.command != "HEAD":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while self.command != "HEAD" and (piece := answer.read1(1 << 16)):
            self.wfile.write(piece if length is not None else b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if length is None and self.command != "HEAD":
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = pass_on  # noqa: N815 - the names are the base class's

    def log_message(self, *_: object) -> None:
        """Nothing: the server has a log of its own."""


@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "strips"])
def test_behind_a_proxy(tmp_path: Path, keeps: bool) -> None:  # noqa: FBT001
    """Below a path, jobs, events, output that is followed, and files both ways work; the log has the client's address.

    It does not matter whether the proxy leaves the path there, where the server is told of it, or takes it away.
    """
    path = ["--base-path", "/wfl"] if keeps else []
    (tmp_path / "given").write_text("given")
    with (
        Running(tmp_path / "server", *path, "--proxies", "127.0.0.1") as server,
        Proxy(server.port, keeps=keeps) as proxy,
        Workflow(RemoteContext(proxy.url, token=server.token, session_name="s")) as flow,
    ):
        job = flow.run(
            shell("cat here; echo; echo end >left"),
            stage_in_files={"here": str(tmp_path / "given")},
            stage_out_files={str(tmp_path / "left"): "left"},
        )
        assert job.wait().output() == "given"
        assert (tmp_path / "left").read_text() == "end\n"
        lines = list(flow.run(shell("echo one; sleep 0.2; echo two")).stream())
        assert lines == ["one", "two"]
        stays = flow.run("sleep", "1000")
        until(lambda: stays.state is JobState.RUNNING)
        stays.kill()
        assert stays.wait().state is JobState.FAILED
        document = server.request("GET", f"{'/wfl' if keeps else ''}/api/v1/openapi.json")[1]
        assert document["servers"] == [{"url": f"{'/wfl' if keeps else ''}/api/v1"}]
        seen = {line.split(" wfl.server: ")[1].split(" ")[0] for line in server.log.splitlines() if "POST" in line}
        assert seen == {"192.0.2.7"}
