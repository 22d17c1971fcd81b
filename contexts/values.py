"""Values of JobTemplate.extensions, which are all text: how they are read, and refused by the extension's name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping


def refuse(name: str, text: object, expected: str) -> NoReturn:
    """Raise InvalidArgumentError that names the extension, what it is, and what it should be."""
    raise InvalidArgumentError(f"extensions[{name!r}] is {text!r}, expected {expected}")


def check_filled(extensions: Mapping[str, str]) -> None:
    """Refuse an empty one: nobody knows what is meant by it."""
    for name, text in extensions.items():
        if not text.strip():
            raise InvalidArgumentError(f"extensions[{name!r}] is empty: leave it out")


def flag(name: str, text: str) -> bool:
    """What is 'true' or 'false'."""
    return text == "true" if text in ("true", "false") else refuse(name, text, "'true' or 'false'")


def items(name: str, text: str, separator: str = ",") -> list[str]:
    """What is a list, without blanks around its items."""
    found = [item.strip() for item in text.split(separator)]
    return found if all(found) else refuse(name, text, f"items between '{separator}', none of them empty")
