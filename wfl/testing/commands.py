"""What a few commands that need no running would do: sleep, echo, true, false, exit, and kill of themselves."""

from __future__ import annotations

import re
import shlex
from signal import Signals
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NOT_UNDERSTOOD = re.compile(r"[|&<>(){}`*?\\]")
_SIGNALS = {f"-{text}": one.name for one in Signals for text in (one.value, one.name, one.name.removeprefix("SIG"))}


def understood(words: Sequence[str], env: Mapping[str, str]) -> dict[str, Any] | None:
    """The fields of an Outcome for this command or line of shell, None if it is any other.

    `env` is what `$NAME` means.
    """
    match [*words]:
        case [_, "-c", line]:
            commands = _commands(line, env)
        case command:
            commands = [command]
    output = {"output": "", "error_output": ""}
    found: dict[str, Any] = {"duration": 0.0, "exit_status": 0}
    for command in commands:
        match command:
            case []:
                pass
            case ["true" | "false" as name]:
                found["exit_status"] = int(name == "false")
            case ["echo", *words]:
                stream = "error_output" if words[-1:] == [">&2"] else "output"
                output[stream] += " ".join(word for word in words if word != ">&2") + "\n"
                found["exit_status"] = 0
            case ["sleep", time] if re.fullmatch(r"inf(inity)?|\d+(\.\d*)?|\.\d+", time):
                found["duration"] += float(time)
                found["exit_status"] = 0
            case ["exit", status] if status.isdigit():
                found["exit_status"] = int(status) % 256
                break
            case ["kill", name, "$$"] if name in _SIGNALS:
                found |= {"exit_status": None, "signal": _SIGNALS[name]}
                break
            case _:
                return None
    return found | output


def _commands(line: str, env: Mapping[str, str]) -> list[list[str]]:
    """The simple commands of a line of shell; one that is not understood if there is more to it."""
    line = re.sub(r"\$(\w+)", lambda name: env.get(name[1], ""), line)
    try:
        found = [shlex.split(part) for part in re.split(r"[;\n]", line)]
    except ValueError:
        return [["?"]]
    return [["?"]] if _NOT_UNDERSTOOD.search(line.replace(">&2", "")) else found
