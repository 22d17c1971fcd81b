"""Finds the fenced code blocks of a page, and runs its Python: python blocks.py PAGE CHAPTER.

The Python blocks of a page share one namespace, in order; `<!-- fresh -->` on a line of its own begins a new
one, a chapter. `<!-- needs NAME -->` in a chapter names a system that it talks to; a chapter may need several.
A block with title="NAME" is also a file of that name in the directory where the blocks run.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

FENCE = re.compile(r"^\s*(?:>\s*)*(?P<mark>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
FRESH = re.compile(r"^\s*<!--\s*fresh\s*-->\s*$")
NEEDS = re.compile(r"^\s*<!--\s*needs\s+(?P<name>\w+)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block: line is that of its opening fence, counted from 1; chapter counts from 0."""

    language: str
    title: str
    source: str
    line: int
    chapter: int


def blocks_of(page: Path) -> list[Block]:
    """Return every fenced block of a page; a fence that is never closed is a ValueError."""
    blocks: list[Block] = []
    chapter, opened, info, body = 0, 0, "", list[str]()
    mark = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if not mark and fence:
            mark, info, opened, body = fence["mark"], fence["info"].strip(), number, []
        elif not mark:
            chapter += bool(FRESH.match(line))
        elif fence and fence["mark"].startswith(mark) and not fence["info"]:
            title = re.search(r'title="([^"]*)"', info)
            language = info.split()[0].strip("{}.") if info else ""
            source = dedent("\n".join(body) + "\n")
            blocks.append(Block(language, title[1] if title else "", source, opened, chapter))
            mark = ""
        else:
            body.append(line)
    if mark:
        message = f"{page}:{opened}: this code block is never closed"
        raise ValueError(message)
    return blocks


def needs_of(page: Path, chapter: int) -> list[str]:
    """Return the names of the systems without which a chapter cannot be run."""
    current, names = 0, list[str]()
    for line in page.read_text(encoding="utf-8").splitlines():
        current += bool(FRESH.match(line))
        if current == chapter and (found := NEEDS.match(line)):
            names.append(found["name"])
    return names


def main(page: Path, chapter: int) -> None:
    """Run the Python blocks of one chapter; a traceback shows the page's own lines."""
    names = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.chapter == chapter and block.language == "python":
            code = compile("\n" * block.line + block.source, str(page), "exec")
            exec(code, names)  # noqa: S102 - the page's own code is what is tested


if __name__ == "__main__":
    sys.path[0] = ""  # modules are looked for where the page's blocks run, not beside this file
    main(Path(sys.argv[1]), int(sys.argv[2]))
