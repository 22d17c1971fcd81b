"""The logger `wfl`, fetched at its first message: the logging module costs 5 ms of start-up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import logging


class _Log:
    def __getattr__(self, name: str) -> Any:
        import logging

        return getattr(logging.getLogger("wfl"), name)


log = cast("logging.Logger", _Log())
