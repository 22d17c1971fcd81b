"""Jobs elsewhere: a job server offers processes over HTTP, and a workflow runs through it as it would here.

The server is started on this machine, with a token for its one user. Files of this side go there and come back, an
array is one request, and output is followed while it is written.
"""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from wfl import Workflow, shell
from wfl.contexts.remote import RemoteContext

SERVER = [sys.executable, "-m", "wfl.server"]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_until_ready(address: str) -> None:
    """The server says so itself."""
    for _ in range(600):
        try:
            with urlopen(f"http://{address}/readyz"):
                return
        except URLError:
            time.sleep(0.05)
    raise SystemExit("the server does not come up")


def work(context: RemoteContext, place: Path) -> None:
    """A workflow like any other: nothing in it but the context tells where it runs."""
    text, counts = place / "text", place / "counts"
    text.write_text("to be or not to be\n")
    with Workflow(context, raise_errors=True) as flow:
        print("the first words:", flow.run("echo", "hello from the server").output())

        words = shell("tr ' ' '\\n' < text | sort | uniq -c | sort -rn > counts")
        flow.run(
            words, stage_in_files={"text": text}, stage_out_files={str(counts): "counts"}
        ).wait().raise_for_status()
        print("counted there, read here:", counts.read_text().split("\n")[0].split())

        array = flow.run_array(5, shell("echo $((TASK_ID * TASK_ID))"))
        print("squares:", [int(square) for square in array.outputs().values()])

        failed = flow.run(shell("echo no such luck >&2; exit 7")).wait()
        print(f"failed with exit status {failed.exit_status()}: {failed.error_output()}")

        for line in flow.run(shell("for n in 1 2 3; do echo line $n; sleep 0.2; done")).stream():
            print("as it is written:", line)


def main() -> None:
    """Start a server, work with it, stop it."""
    with tempfile.TemporaryDirectory() as directory:
        place, address = Path(directory), f"127.0.0.1:{free_port()}"
        create = [*SERVER, "token", "create", "me", "--directory", f"{directory}/server"]
        token = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()
        listen = ["--listen", address, "--directory", f"{directory}/server"]
        with subprocess.Popen([*SERVER, "--log-level", "warning", "serve", *listen]) as server:
            try:
                wait_until_ready(address)
                work(RemoteContext(f"http://{address}", token=token), place)
            finally:
                server.terminate()
        print("the server has ended with status", server.returncode)


if __name__ == "__main__":
    main()
