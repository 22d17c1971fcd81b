"""Every file of examples/ is run, and prints what it promises; none can be forgotten."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import ssh
from tests.clusters import reached
from tests.containers import NAMES, address, lacking, settings_of

EXAMPLES = Path(__file__).parents[2] / "examples"
MAIN = "digits.py"
CONTAINERS = "containers.py"
KUBERNETES = "kubernetes_matrix.py"
HOSTS = "ssh_hosts.py"
STEPS = {"digits_tasks.py", "digits_report.py", "containers_calls.py"}
"""Run by the main example, and by the one with containers."""
NEEDED = ("sklearn", "matplotlib")
"""What the main example needs besides wfl."""
LIMIT_SECONDS = 250

PROMISES = {
    "first_chain.py": [
        r"a step failed with exit status 3",
        r"hello from the first step",
        r"the second step has trouble",
        r"the third step runs whatever happened",
        r"the last step is done",
    ],
    "job_array.py": [r"squares: \[1, 4, 9, 16, 25, 36, 49, 64\]", r"their sum: 204"],
    "cluster_array.py": [
        r"1: 10 MiB",
        r"2: 20 MiB",
        r"4: 40 MiB",
        r"5: ValueError: invalid literal .*'seven'",
        r"100 MiB were not enough for 3",
        r"200 MiB were not enough for 3",
        r"3: 300 MiB",
        r"together: 370 MiB",
    ],
    "kubernetes_matrix.py": [
        r"a=1365 c=0: 1",
        r"a=1365 c=150889: 1",
        r"a=1366 c=0: 10985",
        r"a=1367 c=0: 131820",
        r"a=1367 c=150889: 26364",
        r"16 MiB were not enough for a=1366 c=150889",
        r"32 MiB were not enough for a=1366 c=150889",
        r"a=1366 c=150889: 714025",
        r"the best is a=1366 c=150889; each tenth of its range has 71402 to 71403 of the numbers",
    ],
    "ssh_hosts.py": [
        r"25 degrees: 55\.5 m",
        r"29 degrees: 57\.84 m",
        r"33 degrees: 59\.23 m",
        r"37 degrees: 59\.74 m",
        r"41 degrees: 59\.44 m",
        r"45 degrees: 58\.36 m",
        r"49 degrees: 56\.54 m",
        r"the best is 37: it goes up to 16\.2 m, in 3\.6 s",
        r"flights on each host: node1 [2-5], node2 [2-5]",
    ],
    "remote_server.py": [
        r"the first words: hello from the server",
        r"counted there, read here: \['2', '(to|be)'\]",
        r"squares: \[1, 4, 9, 16, 25\]",
        r"failed with exit status 7: no such luck",
        r"as it is written: line 1",
        r"as it is written: line 2",
        r"as it is written: line 3",
        r"the server has ended with status 0",
    ],
    "matrix.py": [r"24 combinations; the cheapest is x=2 y=-1 z=5 with 5"],
    "branches.py": [r"job 1: result 1", r"job 2: result 2", r"job 3: result 3", r"both branches have ended"],
    "retry.py": [
        r"attempt 1: failed, exit status 1",
        r"attempt 2: failed, exit status 1",
        r"attempt 3: done, exit status 0",
        r"success",
    ],
    "streaming.py": [
        *(rf"after \d+\.\d s: {percent} % done" for percent in (25, 50, 75, 100)),
        r"exit status 0",
    ],
    "template_iterators.py": [
        r"run 1, rate 0\.5",
        r"run 2, rate 0\.75",
        r"RUN 3, RATE 1\.0",
        r"run 4, rate 1\.25",
    ],
    "run_every.py": [r"4 looks at the clock in 1\.5 seconds", *[r"\d+\.\d s after the one before"] * 3],
    "reattach.py": [
        r"first program: two jobs are started",
        r"first program: killed by SIGKILL",
        r"short: 'I had ended before', done with exit status 0",
        r"long: 'I went on alone', failed with exit status 5",
    ],
    "asyncio_service.py": [
        r"6 × 7 = 42",
        r"8 × 9 = 72",
        r"10 × 11 = 110",
        r"three jobs of half a second each, side by side: \d+\.\d s",
    ],
    "web_application.py": [
        r"submit: \{'job': 1\}",
        r"submit: \{'job': 2\}",
        r"output: \{'output': 'hello web'\}",
        r"states: \{'1': 'done', '2': '(queued|running)'\}",
        r"states: \{'1': 'done', '2': 'failed'\}",
    ],
    "exclusive_choice.py": [
        r"inbox with 0 bytes: there is nothing to do",
        r"inbox with 5 bytes: there is something to do",
    ],
    "multi_choice.py": [
        r"11: 0 of 3 paths:",
        r"9: 1 of 3 paths: fizz",
        r"105: 3 of 3 paths: fizz buzz whizz",
    ],
    "parallel_split.py": [r"how many: 3", r"in order: apple pear plum"],
    "synchronization.py": [r"3 parts are being made", r"part 1", r"part 2", r"part 3"],
    "loop_on_results.py": [
        *(rf"round {number}: 1\.\d{{12}}" for number in (1, 2, 3, 4, 5)),
        r"the square root of 2 after 5 rounds: 1\.4142135624",
    ],
    "first_of_many.py": [
        r"the result came from the quick way",
        r"failed: cancelled",
        r"failed: exited",
        r"done: exited",
    ],
    "cancel_the_rest.py": [
        r"element 3 failed \(no input\): the rest is cancelled",
        r"element 1: failed, cancelled",
        r"element 2: failed, cancelled",
        r"element 3: failed, exited",
        *(rf"element {number}: failed, cancelled" for number in (4, 5, 6)),
    ],
}
"""Each example's output, line by line."""

FOUND = sorted(path.name for path in EXAMPLES.glob("*.py"))


def run(example: str, directory: Path, *arguments: str, **variables: str) -> str:
    """Run an example in a directory of its own; it succeeds, warns of nothing, and leaves nothing but its output."""
    done = attempt(["-W", "error", str(EXAMPLES / example), *arguments], directory, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def attempt(arguments: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments to its end, whatever that is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WFL_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment | {"TMPDIR": str(directory)} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def test_all_examples_are_known() -> None:
    """Each file of examples/ has its promises here, and each file named here is there."""
    assert set(FOUND) == {*PROMISES, *STEPS, MAIN, CONTAINERS}


def test_readme_lists_all_examples() -> None:
    """The table has one row for each example."""
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", page, re.MULTILINE)) == sorted({*FOUND} - STEPS)


@pytest.mark.parametrize("example", FOUND)
def test_example_opens_with_a_sentence(example: str) -> None:
    """An example begins by saying in a sentence what it shows."""
    words = ast.get_docstring(ast.parse((EXAMPLES / example).read_text(encoding="utf-8"))) or ""
    sentence = words.partition("\n\n")[0]
    assert len(sentence.split()) > 6
    assert sentence[-1] in ".?"


@pytest.mark.parametrize("example", sorted({*FOUND} - STEPS - {MAIN, CONTAINERS, KUBERNETES, HOSTS}))
def test_example_prints_what_it_promises(example: str, tmp_path: Path) -> None:
    """An example prints its promised lines and no others, without a warning, and cleans up behind itself."""
    lines = run(example, tmp_path).splitlines()
    promised = PROMISES[example]
    assert len(lines) == len(promised), lines
    for line, pattern in zip(lines, promised, strict=True):
        assert re.fullmatch(pattern, line.rstrip()), f"{line!r} is not {pattern!r}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("system", "context"), [("slurm", "slurm"), ("sge", "gridengine"), ("sge", "drmaa")])
def test_cluster_array_on_a_cluster(system: str, context: str, tmp_path: Path) -> None:
    """On a real scheduler it prints the same: what lacks memory is known by its end, and nothing is left behind."""
    chosen = f"{context}?directory={tmp_path}/jobs&detach=false"
    lines = run("cluster_array.py", tmp_path, **reached(system), WFL_CONTEXT=chosen).splitlines()
    for line, pattern in zip(lines, PROMISES["cluster_array.py"], strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
    assert [path.name for path in tmp_path.iterdir()] in ([], ["jobs"])
    assert not any((tmp_path / "jobs").rglob("*"))


def test_kubernetes_matrix(tmp_path: Path) -> None:
    """On a real cluster: files go in and come out, want of memory is known by the ends, and nothing is left behind."""
    place = reached("kubernetes")
    lines = run(KUBERNETES, tmp_path, WFL_CONTEXT=f"kubernetes?session_name={tmp_path.name}", **place).splitlines()
    assert len(lines) == len(PROMISES[KUBERNETES]), lines
    for line, pattern in zip(lines, PROMISES[KUBERNETES], strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
    assert list(tmp_path.iterdir()) == []
    asked = ["kubectl", "get", "jobs", "--output=name", f"--selector=wfl/session={tmp_path.name}"]
    assert subprocess.run(asked, env=os.environ | place, capture_output=True, text=True, check=True).stdout == ""


def test_kubernetes_matrix_without_a_cluster(tmp_path: Path) -> None:
    """Where no cluster is to be found, the example says so in one line: where it looked, and what to do."""
    if importlib.util.find_spec("kubernetes") is None:
        lacking("the client of Kubernetes is not in this environment")
    nowhere = str(tmp_path / "kubeconfig")
    done = attempt(["-W", "error", str(EXAMPLES / KUBERNETES)], tmp_path, KUBECONFIG=nowhere)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"no cluster here: .*{nowhere}.*no such file.*kubeconfig.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("said", ["by arguments", "by WFL_CONTEXT"])
def test_ssh_hosts(said: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On two real hosts: both have work, files go there and come back, and nothing is left behind, here or there."""
    variables = ssh.home(tmp_path_factory.mktemp("home"))
    homes = [ssh.settings().home, Path.home()]
    arguments = ["node1", "node2"] if said == "by arguments" else []
    if not arguments:
        variables["WFL_CONTEXT"] = f"ssh?hosts=node1,node2&slots=2&session_name={tmp_path.name}"
    lines = run(HOSTS, tmp_path, *arguments, **variables).splitlines()
    assert len(lines) == len(PROMISES[HOSTS]), lines
    for line, pattern in zip(lines, PROMISES[HOSTS], strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
    assert list(tmp_path.iterdir()) == []
    assert not [path for home in homes for path in home.glob("flights-*")]


def test_ssh_hosts_without_a_host(tmp_path: Path) -> None:
    """Where no host can be reached, the example says so in one line, with the host's name."""
    if importlib.util.find_spec("paramiko") is None:
        lacking("paramiko is not in this environment")
    done = attempt(["-W", "error", str(EXAMPLES / HOSTS), "nobody@127.0.0.1:1"], tmp_path, HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"7 of 7 have failed: nobody@127\.0\.0\.1:1: .* cannot be reached: .*\n", done.stderr), (
        done.stderr
    )


def test_streaming_is_not_late(tmp_path: Path) -> None:
    """The streaming example has each line when it is written, not all at the end: the job sleeps between them."""
    seconds = [float(time) for time in re.findall(r"after (\d+\.\d) s", run("streaming.py", tmp_path))]
    assert seconds[-1] - seconds[0] > 0.3


def test_main_example(tmp_path: Path) -> None:
    """The search over the digits finds a good model, survives its failures, and leaves a report with a picture."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        lacking(f"{' and '.join(missing)} not in this environment (the extra `examples` has them)")

    output = run(MAIN, tmp_path, "3")

    assert "1797 handwritten digits: 1347 to train with, 450 to test with" in output
    assert "9 trainings are on their way" in output
    assert len(re.findall(r"^train-\w+-\w+-3 took 2 attempts$", output, re.MULTILINE)) == 1
    assert re.findall(r"^(train-\S+) failed: ValueError: Negative values", output, re.MULTILINE) == [
        "train-bayes-standard-3"
    ]
    assert "best parameters: Support vector machine, penalty C 3" in output
    accuracy = re.search(r"^test accuracy: +(\d+\.\d)%$", output, re.MULTILINE)
    assert accuracy
    assert float(accuracy[1]) > 96
    report, picture = tmp_path / "digits-report" / "report.md", tmp_path / "digits-report" / "digits.png"
    assert f"report:          {report}\npicture:         {picture}\n" in output
    page = report.read_text(encoding="utf-8")
    assert "(digits.png)" in page
    assert page.count("\n| ") == 1 + 9  # the head, and a row for each training
    assert "failed: ValueError: Negative values" in page
    check_picture(picture)


def hosts() -> dict[str, str]:
    """What tells a program where the daemons are."""
    return {"DOCKER_HOST": address("docker"), "CONTAINER_HOST": address("podman")}


@pytest.mark.parametrize("system", NAMES)
def test_containers(system: str, tmp_path: Path) -> None:
    """One variable chooses the daemon; the parser's failure is told and made good; nothing stays behind, here or there.

    What is counted is compared with Python's own parser.
    """
    settings = settings_of(address(system))

    lines = run(CONTAINERS, tmp_path, "json", WFL_CONTEXT=f"{system}?session_name={tmp_path.name}", **hosts())

    assert lines.splitlines() == [
        "old: SyntaxError: Missing parentheses in call to 'print'. Did you mean print(...)?",
        "old: len 1, max 1, upper 1",
        f"json: {', '.join(f'{name} {number}' for name, number in most_called(Path(json.__file__).parent))}",
    ]
    assert list(tmp_path.iterdir()) == []
    assert containers_of(tmp_path.name, settings) == []


def most_called(package: Path) -> list[tuple[str, int]]:
    """The three names that a package calls most, and how often."""
    counts: Counter[str] = Counter()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call):
                counts[str(getattr(node.func, "id", "") or getattr(node.func, "attr", ""))] += 1
    del counts[""]
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]


def containers_of(session: str, settings: Mapping[str, Any]) -> list[object]:
    """What is left of a session."""
    from wfl.contexts.containers.client import Client

    client = Client(settings)
    try:
        return [*client.list({"wfl.session": session})]
    finally:
        client.close()


@pytest.mark.parametrize("system", NAMES)
def test_containers_without_a_daemon(system: str, tmp_path: Path) -> None:
    """Where no daemon listens, the example says so in one line: what it asked, and what to do."""
    if importlib.util.find_spec("docker") is None:
        lacking("docker-py is not in this environment")
    nowhere = f"unix://{tmp_path}/none.sock"
    place = {"WFL_CONTEXT": system, "DOCKER_HOST": nowhere, "CONTAINER_HOST": nowhere}
    done = attempt(["-W", "error", str(EXAMPLES / CONTAINERS)], tmp_path, **place)
    assert done.returncode == 1
    assert done.stdout == ""
    cure = {"docker": "Is the daemon running", "podman": "Start its service"}[system]
    assert re.fullmatch(rf"no containers here: {nowhere}: .*No such file.*{cure}.*\n", done.stderr), done.stderr


def check_picture(path: Path) -> None:
    """The picture is large, mostly white, and has many colours: nothing of it is blank."""
    from matplotlib import image

    pixels = image.imread(path)
    height, width = pixels.shape[:2]
    assert height > 900
    assert width > 1200
    rows, columns = [slice(0, height // 2), slice(height // 2, None)], [slice(0, width // 2), slice(width // 2, None)]
    for row in rows:
        for column in columns:
            quarter = pixels[row, column, :3].reshape(-1, 3)
            assert len({tuple(colour) for colour in quarter[::7].tolist()}) > 20
            assert 0.02 < (quarter.min(axis=1) < 0.9).mean() < 0.98
