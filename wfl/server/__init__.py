"""A job server: offers any context over HTTP, to programs elsewhere and in other languages (extra `server`).

`python -m wfl.server serve` runs one; `create_app` makes one that is part of another ASGI application.
docs/server.md says who talks to whom, and what is refused unless it is allowed.
"""

from wfl.extras import needed

with needed("server", "the job server needs starlette and uvicorn"):
    import starlette
    import uvicorn

    from wfl.server.app import create_app
    from wfl.server.identities import Anybody, Identities, Identity
    from wfl.server.limits import ServerLimits
    from wfl.server.policy import Policy

    del starlette, uvicorn

__all__ = ["Anybody", "Identities", "Identity", "Policy", "ServerLimits", "create_app"]
