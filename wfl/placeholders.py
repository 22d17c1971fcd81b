"""Placeholders: $DRMAA2_INDEX$, $DRMAA2_HOME_DIR$ and $DRMAA2_WORKING_DIR$ everywhere, {{.ID}} in the three paths."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec

from wfl.backend import INDEX
from wfl.drmaa2 import map_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from wfl.drmaa2 import JobTemplate

HOME, WORKING = DIRECTORIES = ("$DRMAA2_HOME_DIR$", "$DRMAA2_WORKING_DIR$")
"""Those with which a path may begin: they are absolute."""
_ID = re.compile(r"\{\{ *\.ID *\}\}")
_encode = msgspec.json.Encoder().encode
PATHS = ("input_path", "output_path", "error_path")
"""Fields of standard input, output and error."""


def has_placeholders(template: JobTemplate) -> bool:
    """Whether anything may have to be replaced; cheap, as it is asked of every job."""
    try:
        text = _encode(template)
    except UnicodeError:  # names that are not UTF-8: look closely
        return True
    return b"$DRMAA2_" in text or b"{{" in text


def only_index(template: JobTemplate, fields: Collection[str]) -> bool:
    """Whether nothing differs between the elements of an array but the index, and that in these fields alone."""
    numbered = any("{{" in (getattr(template, name) or "") for name in PATHS)
    return not numbered and not has_placeholders(template.replace(**dict.fromkeys(fields)))


def fill(template: JobTemplate, index: int | str | None, next_number: Callable[[], int]) -> JobTemplate:
    """The template with its placeholders replaced; outside of an array the index is the empty text."""
    if not has_placeholders(template):
        return template
    home = os.path.expanduser("~")
    number = "" if index is None else str(index)
    directory = (template.working_directory or os.getcwd()).replace(HOME, home)
    replacements = {
        INDEX: number,
        HOME: home,
        WORKING: directory.replace(INDEX, number),
    }

    def replace(text: str) -> str:
        for placeholder, value in replacements.items():
            text = text.replace(placeholder, value)
        return text

    template = map_text(template, replace)
    if any("{{" in (getattr(template, name) or "") for name in PATHS):
        number = str(next_number())
        template = map_text(template, lambda text: _ID.sub(number, text), PATHS)
    return template
