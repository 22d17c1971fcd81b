"""The description of the job server's API: whole, true, and made from what the server itself decodes with."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.asgi import API, SESSION, Client, Served, started
from wfl.drmaa2 import JobInfo, JobState, JobTemplate
from wfl.server.messages import shape
from wfl.server.routes import ENDPOINTS
from wfl.testing import FakeContext


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One for all."""
    served = Served(Path(tmp_path_factory.mktemp("server")), FakeContext, base_path="/wfl")
    yield served.alice
    served.stop()


@pytest.fixture(scope="module")
def document(client: Client) -> Any:
    """The description."""
    answer = client.get(f"/wfl{API}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def references(value: Any) -> Iterator[str]:
    """All that a description refers to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_it_is_whole(document: Any) -> None:
    """Every endpoint is in it, with all of its parameters; every reference leads somewhere."""
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": f"/wfl{API}"}]
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(one.method, one.path) for one in ENDPOINTS}
    for reference in references(document):
        head, _, name = reference.rpartition("/")
        assert head == "#/components/schemas"
        assert name in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            given = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert given == {*re.findall(r"\{(\w+)\}", path)}
            assert {"200", "400", "401", "403"} <= set(operation["responses"])
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len({*names})


def test_it_says_what_templates_and_infos_have(document: Any) -> None:
    """Their fields are those of the values themselves, in the words of their JSON."""
    schemas = document["components"]["schemas"]
    for value in (JobInfo, JobTemplate):
        assert [*schemas[value.__name__]["properties"]] == [*value.__struct_encode_fields__]
    assert schemas["JobInfo"]["properties"]["cpuTime"]["anyOf"][0]["type"] == "number"
    assert schemas["JobTemplate"]["properties"]["startTime"]["anyOf"][0]["format"] == "date-time"
    assert {*schemas["JobState"]["enum"]} == {*map(str, JobState)}


def test_what_is_answered_is_as_described() -> None:
    """Infos and templates are what their descriptions decode."""
    template = JobTemplate(remote_command="x", args=["a"], job_environment={"A": "1"}, min_slots=2)
    msgspec.json.decode(template.to_json(), type=shape(JobTemplate), strict=True)
    info = JobInfo(id="1", state=JobState.DONE, sub_state="exited", exit_status=0, wallclock_time=1.5)  # type: ignore[arg-type] # seconds
    msgspec.json.decode(info.to_json(), type=shape(JobInfo), strict=True)


def test_bodies_that_are_described_are_taken(client: Client) -> None:
    """What the description calls required is enough."""
    base = f"/wfl{SESSION}"
    for path, body in (
        ("jobs", {"jobs": [{"template": {}}]}), ("find", {}), ("control", {"ids": [], "action": "kill"}),
        ("reap", {"ids": []}), ("uploads", {}), ("arrays", {"template": {"remoteCommand": "x"}, "indexes": [0, 1, 1]}),
    ):  # fmt: skip
        answer = client.post(f"{base}/{path}", body)
        assert answer.status == 200, answer.body


def test_the_page_for_people(client: Client) -> None:
    """It names every endpoint, and runs nothing."""
    page = client.get(f"/wfl{API}/docs").body.decode()
    assert all(one.path in page for one in ENDPOINTS)
    assert "<script" not in page


def test_it_is_the_same_for_all_servers(document: Any, tmp_path: Path) -> None:
    """It depends on nothing but the address."""
    served = Served(tmp_path, FakeContext)
    started(served.alice)
    other = served.alice.get(f"{API}/openapi.json").json()
    served.stop()
    assert json.dumps({**other, "servers": []}) == json.dumps({**document, "servers": []})
