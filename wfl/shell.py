"""shell(): a job template for one line of shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wfl.drmaa2 import JobTemplate

if TYPE_CHECKING:
    from typing import Unpack

    from wfl.drmaa2 import TemplateFields


def shell(line: str, **fields: Unpack[TemplateFields]) -> JobTemplate:
    """A template that runs `line` by `/bin/sh -c`: pipes, redirections, variables."""
    for name in ("remote_command", "args"):
        if name in fields:
            raise TypeError(f"shell() sets {name} itself; put everything into the line")
    return JobTemplate(remote_command="/bin/sh", args=("-c", line)).replace(**fields)
