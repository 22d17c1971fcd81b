"""How much one server takes from its clients: sizes, numbers, times."""

from __future__ import annotations

from msgspec import Struct, structs

from wfl.errors import InvalidArgumentError


class ServerLimits(Struct, frozen=True, kw_only=True):
    """Bytes, numbers and seconds; what exceeds them is refused, and says so.

    submissions: jobs in one request. elements: of one array. ids: ids and keys in one request. jobs: that one identity
    has at a time, ended ones that are not reaped included.
    body: bytes of a request. upload: bytes of one upload. stored, uploads: bytes and number of all of one identity.
    bodies: bytes of all bodies of requests that are under way. bodies_each: of one identity.
    chunk: bytes of output in one answer. url, headers: bytes. header_lines: number.
    rate, burst: requests a second of one identity, and how many may come at once. passwords: wrong ones in a minute.
    wait: seconds of one long poll. heartbeat: between two signs of life in a stream. streams: that are open at once;
    streams_each: of one identity.
    body_seconds: for a request's body, and then for each KiB of an upload more. send_seconds: for a client to take what
    it is sent. header_seconds: for a request's head, and for a connection that says nothing. answer_seconds: that a
    request waits for the execution system. keep_upload: that an upload is kept which no job uses.
    connections: at once. threads: for what blocks (of each kind: to act, to look, to read and write). waiting: requests
    that may wait for one of these. threads_each, waiting_each: of one identity.
    events: bytes of events that are kept for clients that connect again.
    """

    submissions: int = 1000
    elements: int = 100_000
    ids: int = 10_000
    jobs: int = 200_000
    body: int = 16 << 20
    bodies: int = 256 << 20
    bodies_each: int = 64 << 20
    upload: int = 4 << 30
    stored: int = 32 << 30
    uploads: int = 10_000
    chunk: int = 4 << 20
    url: int = 8192
    headers: int = 32768
    header_lines: int = 100
    rate: float = 1000.0
    burst: int = 2000
    passwords: int = 10
    wait: float = 60.0
    heartbeat: float = 10.0
    streams: int = 3000
    streams_each: int = 1500
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    header_seconds: float = 10.0
    answer_seconds: float = 120.0
    keep_upload: float = 3600.0
    connections: int = 4000
    threads: int = 32
    threads_each: int = 8
    waiting: int = 1000
    waiting_each: int = 500
    events: int = 64 << 20

    def __post_init__(self) -> None:
        for name, value in structs.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
            if not value > 0:
                raise InvalidArgumentError(f"{name} is {value}, expected more than 0")
