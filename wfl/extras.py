"""Packages that not everybody needs: extras of wfl-sdk, imported at first use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from wfl.errors import SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def needed(extra: str, why: str) -> Iterator[None]:
    """What is imported here is in an extra. Raises SessionManagementError that says `why` and how to get it."""
    try:
        yield
    except ImportError as error:
        raise SessionManagementError(f"{why}: pip install 'wfl-sdk[{extra}]' ({error})") from error
