"""Exclusive choice: the end of one job decides which one of several paths is taken."""

import tempfile
from pathlib import Path

from wfl import Workflow

PATHS: dict[int | None, str] = {0: "there is something to do", 1: "there is nothing to do"}

with tempfile.TemporaryDirectory() as directory, Workflow() as flow:
    for text in ("", "work\n"):
        Path(directory, "inbox").write_text(text, encoding="utf-8")
        question = flow.run("test", "-s", "inbox", working_directory=directory)
        path = flow.run("echo", PATHS.get(question.exit_status(), "the question could not be answered"))
        print(f"inbox with {len(text)} bytes: {path.output()}")
