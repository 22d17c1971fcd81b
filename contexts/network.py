"""What keeps an answer from us, for people."""

from __future__ import annotations

import ssl
from http.client import IncompleteRead


def words(reason: BaseException) -> str:
    """The innermost reason, which clients wrap, in one line."""
    if isinstance(reason, ssl.SSLError):
        alert = (reason.reason or str(reason)).replace("_", " ").lower()
        more = f": {reason.verify_message}" if isinstance(reason, ssl.SSLCertVerificationError) else ""
        return f"TLS: {alert}{more}"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    if isinstance(reason, TimeoutError):
        return "nothing was heard in time"
    if isinstance(reason, IncompleteRead | EOFError):
        return "the connection was cut"
    return " ".join(str(reason).split()) or type(reason).__name__
