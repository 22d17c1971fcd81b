"""Parameter sweeps: one job template and some replacements make every combination."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Number
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import force_setattr

from wfl.drmaa2 import TEXT_FIELDS, JobTemplate, map_text
from wfl.errors import InvalidArgumentError, nearest

if TYPE_CHECKING:
    from decimal import Decimal


class Replacement(Struct, frozen=True):
    """Every `pattern` in the texts of a template is replaced by each of `values` in turn.

    `values` are texts or paths; numbers become text. `fields` names the template fields to look in, None
    means every field that holds text. A pattern is plain text, found in items, keys and values too.
    """

    pattern: str
    values: tuple[str, ...]
    fields: frozenset[str] | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            pattern: str,
            values: Iterable[str | float | Decimal | os.PathLike[str]],
            fields: Iterable[str] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)
        force_setattr(self, "values", _value_texts(self.values))
        if self.fields is not None:
            force_setattr(self, "fields", _field_names(self.fields))

    def apply(self, templates: list[JobTemplate]) -> list[JobTemplate]:
        """Return each of `templates` once per value."""
        if not any(self._occurs_in(template) for template in templates):
            where = "any text field" if self.fields is None else ", ".join(sorted(self.fields))
            raise InvalidArgumentError(f"pattern {self.pattern!r} does not occur in {where} of the job template")
        return [self._with(template, value) for template in templates for value in self.values]

    def _with(self, template: JobTemplate, value: str) -> JobTemplate:
        return map_text(template, lambda text: text.replace(self.pattern, value), self.fields)

    def _occurs_in(self, template: JobTemplate) -> bool:
        found = False

        def look(text: str) -> str:
            nonlocal found
            found = found or self.pattern in text
            return text

        map_text(template, look, self.fields)
        return found


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise TypeError(f"pattern is {pattern!r} ({type(pattern).__name__}), expected str")
    if not pattern:
        raise InvalidArgumentError("pattern is empty: it would be found everywhere")


def _value_texts(values: Any) -> tuple[str, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"values is {values!r} ({type(values).__name__}), expected a list of texts or numbers")
    texts = tuple([_value_text(index, value) for index, value in enumerate(values)])
    if not texts:
        raise InvalidArgumentError("values is empty: no job would be submitted")
    return texts


def _value_text(index: int, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, (str, Number)):
        raise TypeError(f"values[{index}] is {value!r} ({type(value).__name__}), expected text or a number")
    return str(value)


def _field_names(fields: Any) -> frozenset[str]:
    names = frozenset((fields,) if isinstance(fields, str) else fields)
    for name in names:
        if name in JobTemplate.__struct_fields__ and name not in TEXT_FIELDS:
            raise InvalidArgumentError(f"fields: {name} holds no text; vary it with template.replace({name}=…)")
        if name not in TEXT_FIELDS:
            raise InvalidArgumentError(f"fields: JobTemplate has no field {name!r}:{nearest(name, TEXT_FIELDS)}")
    return names


def expand(template: JobTemplate, replacements: Iterable[Replacement]) -> list[JobTemplate]:
    """Return `template` in every combination of the replacements' values; the first replacement is outermost.

    A later replacement also finds its pattern in what an earlier one put in; none searches its own values.
    """
    templates = [template]
    for replacement in replacements:
        if not isinstance(replacement, Replacement):
            raise TypeError(f"{replacement!r} ({type(replacement).__name__}) is no Replacement")
        templates = replacement.apply(templates)
    return templates
