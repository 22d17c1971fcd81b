"""Placeholders: $DRMAA2_INDEX$, $DRMAA2_HOME_DIR$ and $DRMAA2_WORKING_DIR$ everywhere, {{.ID}} in the three paths."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from wfl.drmaa2 import TEXT_FIELDS, map_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from wfl.drmaa2 import JobTemplate

_ID = re.compile(r"\{\{ *\.ID *\}\}")
_PATHS = ("input_path", "output_path", "error_path")


def has_placeholders(template: JobTemplate) -> bool:
    """Whether anything would be replaced; cheap, as it is asked of every job."""
    for name in TEXT_FIELDS:
        value = getattr(template, name)
        if value is None:
            continue
        if type(value) is str:
            if "$DRMAA2_" in value or "{{" in value:
                return True
        elif any("$DRMAA2_" in text for text in value) or (
            isinstance(value, dict) and any("$DRMAA2_" in text for text in value.values())
        ):
            return True
    return False


def fill(template: JobTemplate, index: int | None, next_number: Callable[[], int]) -> JobTemplate:
    """The template with its placeholders replaced; outside of an array the index is the empty text."""
    if not has_placeholders(template):
        return template
    home = os.path.expanduser("~")
    number = "" if index is None else str(index)
    directory = (template.working_directory or os.getcwd()).replace("$DRMAA2_HOME_DIR$", home)
    replacements = {
        "$DRMAA2_INDEX$": number,
        "$DRMAA2_HOME_DIR$": home,
        "$DRMAA2_WORKING_DIR$": directory.replace("$DRMAA2_INDEX$", number),
    }

    def replace(text: str) -> str:
        for placeholder, value in replacements.items():
            text = text.replace(placeholder, value)
        return text

    template = map_text(template, replace)
    if any("{{" in (getattr(template, name) or "") for name in _PATHS):
        number = str(next_number())
        template = map_text(template, lambda text: _ID.sub(number, text), _PATHS)
    return template
