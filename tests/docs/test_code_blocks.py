"""Every fenced code block of the README and of the pages works as it stands."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ssh
from tests.clusters import SCHEDULERS, jobs_of, reached
from tests.containers import address, settings_of
from tests.docs.blocks import Block, blocks_of, needs_of
from tests.faults.machine import wait_until

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [(page, block) for page in PAGES for block in blocks_of(page)]
CHAPTERS = sorted({(page, block.chapter) for page, block in BLOCKS if block.language == "python"})
COMMANDS = [(page, block) for page, block in BLOCKS if block.language in ("bash", "console")]
LIMIT_SECONDS = 120
DAEMONS = {"docker": "DOCKER_HOST", "podman": "CONTAINER_HOST"}
"""What tells the code of a page where a daemon of containers is."""


def name_of(value: object) -> str:
    """Name a test after the page and the line or chapter."""
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return f"line-{value.line}" if isinstance(value, Block) else f"chapter-{value}"


def run(command: list[str], directory: Path, **variables: str) -> None:
    """Run a command in a directory of its own, with this environment's programs first; it has to succeed."""
    environment = os.environ | {
        "HOME": str(directory),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    told = f"status {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{shlex.join(command)}: {told}"


def lay_out(page: Path, directory: Path) -> None:
    """Put the page's titled blocks and the repository's examples where its commands look for them."""
    (directory / "examples").symlink_to(ROOT / "examples")
    for block in blocks_of(page):
        if block.title:
            (directory / block.title).write_text(block.source, encoding="utf-8")


def commands_of(block: Block) -> list[str]:
    """Return a block's commands: each line of bash; of a console those after `$ `."""
    lines = block.source.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def check_pip_install(words: list[str]) -> None:
    """Check that each requirement is this distribution, or the folder `.`, with extras that it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [word for word in words if not word.startswith("-")]
    assert wanted, "pip install what?"
    for word in wanted:
        requirement = re.fullmatch(r"(?P<name>[\w.-]+?)(?:\[(?P<extras>[\w,-]+)\])?", word)
        assert requirement, word
        assert requirement["name"] in (project["name"], "."), word
        extras = set((requirement["extras"] or "").split(",")) - {""}
        assert extras <= set(project["optional-dependencies"]), word


@pytest.mark.parametrize(("page", "chapter"), CHAPTERS, ids=name_of)
def test_python_blocks_run(page: Path, chapter: int, tmp_path: Path) -> None:
    """The Python of a page runs from top to bottom without an error or a warning, given the systems that it needs.

    Of what it has submitted to a scheduler nothing is left.
    """
    hosts: dict[str, str] = {}
    needs = needs_of(page, chapter)
    for name in needs:
        hosts |= way_to(name, tmp_path)
    lay_out(page, tmp_path)
    script = str(Path(__file__).with_name("blocks.py"))
    run([sys.executable, "-W", "error", script, str(page), str(chapter)], tmp_path, **hosts)
    for name in SCHEDULERS & {*needs}:
        wait_until(f"{name} has none of its jobs", lambda name=name: not jobs_of(tmp_path, name))  # type: ignore[misc]


def way_to(name: str, home: Path) -> dict[str, str]:
    """The variables that lead to a system, for code at home in a directory. Skips, or fails, where there is none."""
    if name == "sshd":
        return ssh.home(home)
    return reached(name) if name in SCHEDULERS else daemon(name)


def daemon(name: str) -> dict[str, str]:
    """The variable of a daemon that answers. Skips, or fails, where there is none."""
    settings_of(address(name))
    return {DAEMONS[name]: address(name)}


@pytest.mark.parametrize(("page", "block"), COMMANDS, ids=name_of)
def test_commands_work(page: Path, block: Block, tmp_path: Path) -> None:
    """Commands succeed; those of make and pip are looked up, as running them here would build all anew."""
    lay_out(page, tmp_path)
    commands = commands_of(block)
    assert commands, "a block without a command: call it text"
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            run(["make", "--dry-run", "--directory", str(ROOT), *words[1:]], tmp_path)
        elif "pip" in words and "install" in words:
            check_pip_install(words[words.index("install") + 1 :])
        else:
            run(["bash", "-euo", "pipefail", "-c", command], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_other_blocks_are_known(page: Path) -> None:
    """Data parses; text is text; a block that no test reads is an error, so that none goes unchecked."""
    readers = {"toml": tomllib.loads, "json": json.loads}
    for block in blocks_of(page):
        if reader := readers.get(block.language):
            reader(block.source)
        else:
            known = ("python", "bash", "console", "text")
            assert block.language in known, f"{page}:{block.line}: no test for {block.language!r}"
