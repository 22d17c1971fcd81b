"""The API described (OpenAPI 3.1): made from the table of its endpoints and the structs of its bodies."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import msgspec
from msgspec import Struct

from wfl.server.messages import VALUES, shape
from wfl.server.refusals import Problem

Json = dict[str, Any]
SCHEMAS = "#/components/schemas/{name}"
BYTES = "application/octet-stream"


class Parameter(Struct, frozen=True):
    """One parameter of an endpoint; `schema` is JSON Schema."""

    name: str
    place: Literal["path", "query", "header"]
    schema: Json
    about: str
    required: bool = False


class Endpoint(Struct, frozen=True, kw_only=True):
    """One thing that can be asked for: `handler` is the name of the method that answers.

    `body` and `answer` are structs, or the media type of what is no JSON. `statuses` are those besides 200 and the ones
    that every request can have.
    """

    method: str
    path: str
    handler: str
    about: str
    body: type[Struct] | str | None = None
    answer: type[Struct] | str | None = None
    parameters: tuple[Parameter, ...] = ()
    statuses: tuple[int, ...] = ()


EVERY = (400, 401, 403, 413, 414, 429, 431, 500, 503)
WORDS = {
    200: "done",
    206: "a part",
    400: "the request is malformed",
    401: "nobody knows you: a token or a password is needed",
    403: "this server's policy refuses it",
    404: "there is no such thing, or it is another identity's",
    408: "the body came too slowly",
    409: "not possible in the present state",
    413: "the body is too large",
    414: "the address is too long",
    416: "there is nothing in that range",
    422: "the template, or what is asked for, is refused",
    429: "too many requests; see Retry-After",
    431: "the headers are too large",
    500: "a mistake of the server",
    503: "the server is being stopped, or the execution system is away; see Retry-After",
}


@cache
def release() -> str:
    """The version of wfl."""
    try:
        return version("wfl-sdk")
    except PackageNotFoundError:
        return "unknown"


def document(endpoints: tuple[Endpoint, ...]) -> Json:
    """The whole document but for `servers`: the address below which the endpoints are."""
    kinds = [kind for one in endpoints for kind in (one.body, one.answer) if isinstance(kind, type)]
    values = [shape(value) for value in VALUES]
    references, components = msgspec.json.schema_components([*kinds, Problem, *values], ref_template=SCHEMAS)
    schemas = dict(zip([*kinds, Problem, *values], references, strict=True))
    paths: Json = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "wfl job server", "version": release(), "license": {"name": "Apache-2.0"}},
        "security": [{"token": []}, {"password": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _operation(one: Endpoint, schemas: dict[Any, Json]) -> Json:
    found: Json = {"operationId": one.handler, "summary": one.about, "responses": {}}
    if one.parameters:
        found["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "description": parameter.about,
                "required": parameter.required or parameter.place == "path",
                "schema": parameter.schema,
            }
            for parameter in one.parameters
        ]
    if one.body is not None:
        found["requestBody"] = {"required": True, "content": _content(one.body, schemas)}
    answer: Json = {"description": WORDS[200]}
    if one.answer is not None:
        answer["content"] = _content(one.answer, schemas)
    found["responses"]["200"] = answer
    for status in sorted({*EVERY, *one.statuses}):
        content = answer.get("content") if status == 206 else _content(Problem, schemas)  # noqa: PLR2004
        if one.method == "HEAD":
            content = None
        found["responses"][str(status)] = {"description": WORDS[status], **({"content": content} if content else {})}
    return found


def _content(kind: type[Struct] | str, schemas: dict[Any, Json]) -> Json:
    if isinstance(kind, str):
        schemas_of = {BYTES: {"type": "string", "format": "binary"}, "application/json": {"type": "object"}}
        return {kind: {"schema": schemas_of.get(kind, {"type": "string"})}}
    return {"application/json": {"schema": schemas[kind]}}
