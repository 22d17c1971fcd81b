"""Embedded in a small web application: requests submit jobs, and ask for their states and outputs.

POST /jobs with a command line submits it, GET /jobs lists all, GET /jobs/1 waits for the first and gives its output.
It runs whatever it is told to, so it listens to this machine alone. The example starts it, makes requests, and stops.
"""

import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

from wfl import Job, Workflow

jobs: list[Job] = []


class Application(BaseHTTPRequestHandler):
    """Each request is served in a thread of its own; they share one workflow."""

    def do_POST(self) -> None:
        """Submit a job; the answer is its number."""
        command = shlex.split(self.rfile.read(int(self.headers["Content-Length"])).decode())
        jobs.append(flow.run(command[0], *command[1:]))
        self.reply({"job": len(jobs)})

    def do_GET(self) -> None:
        """All states, or one output."""
        number = self.path.removeprefix("/jobs").strip("/")
        if number:
            self.reply({"output": jobs[int(number) - 1].output()})
        else:
            self.reply({str(n): job.state.value for n, job in enumerate(jobs, start=1)})

    def reply(self, answer: dict[str, object]) -> None:
        """Send JSON."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def request(path: str, command: str | None = None) -> object:
    """GET, or with a command POST."""
    data = None if command is None else command.encode()
    with urlopen(f"http://127.0.0.1:{server.server_port}{path}", data) as response:
        return json.load(response)


with Workflow() as flow, ThreadingHTTPServer(("127.0.0.1", 0), Application) as server:
    threading.Thread(target=server.serve_forever).start()
    print("submit:", request("/jobs", "echo 'hello web'"))
    print("submit:", request("/jobs", "sleep 60"))
    print("output:", request("/jobs/1"))
    print("states:", request("/jobs"))
    jobs[1].kill().wait()
    print("states:", request("/jobs"))
    server.shutdown()
