"""Images from a real registry: when they are fetched, with whose credentials, and what is said where that fails."""

from __future__ import annotations

import base64
import json
import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import IMAGE, Daemon, reached
from tests.faults.servers import PASSWORD, USER, Registry
from wfl import JobInfo, Workflow
from wfl.contexts.docker import DockerContext
from wfl.errors import DeniedByDrmsError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RIGHT = {"username": USER, "password": PASSWORD}
FIELDS: dict[str, Any] = {"extensions": {"network": "none"}}
NAME = "wfl/box"


@dataclass
class Ran:
    """What became of a job, as its session said before it was closed."""

    errors: list[Exception]
    outputs: list[str]
    infos: list[JobInfo]


def read(job: Any) -> Ran:
    """Wait for a job, and ask for all that can be asked."""
    job.synchronize(120)
    return Ran(list(job.errors), list(job.outputs().values()), job.infos())


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """The dockerd that `make services` has started."""
    with reached("docker") as found:
        yield found


@pytest.fixture(scope="module")
def registry(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with a copy of the image, which is not on the daemon."""
    found = Registry(tmp_path_factory.mktemp("registry"))
    try:
        push(daemon, IMAGE, f"{found.address}/{NAME}:1")
        yield found
    finally:
        found.close()


def push(daemon: Daemon, image: str, name: str) -> None:
    """Copy an image into the registry, and forget the name here."""
    daemon.api.tag(image, *name.rsplit(":", 1))
    for step in daemon.api.push(name, stream=True, decode=True, auth_config=RIGHT):
        assert "error" not in step, step
    daemon.api.remove_image(name)


@pytest.fixture
def image(daemon: Daemon, registry: Registry) -> Iterator[str]:
    """Its name; the daemon does not have it, neither before nor afterwards."""
    name = f"{registry.address}/{NAME}:1"
    yield name
    for one in daemon.api.images():
        for tag in one["RepoTags"] or ():
            if tag.startswith(f"{registry.address}/"):
                daemon.api.remove_image(tag)


@pytest.fixture
def run(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., Ran]]:
    """Runs a job in a session of its own and gives its Job; no secret is told anywhere on the way."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    sessions: list[str] = []
    told: list[str] = []
    caplog.set_level(logging.DEBUG)

    def start(count: int = 1, fields: dict[str, Any] = FIELDS, **settings: Any) -> Ran:
        sessions.append(f"images-{uuid.uuid4().hex}")
        context = DockerContext(base_url=daemon.url, session_name=sessions[-1], **settings)
        with Workflow(context) as flow:
            job = flow.run_array(count, "echo", "ran", **fields) if count > 1 else flow.run("echo", "ran", **fields)
            found = read(job)
            there = [daemon.api.inspect_container(one["Id"]) for one in daemon.containers(sessions[-1])]
            told.extend([repr(context), repr(job), repr(flow), repr(found), repr(there)])
            told.extend(str(error) for error in found.errors)
        return found

    yield start
    told.append(caplog.text)
    for secret in (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()):
        assert not [text for text in told if secret in text]
    daemon.is_empty(*sessions)


def configure(tmp_path: Path, **content: Any) -> None:
    """Write the docker command's configuration."""
    (tmp_path / "config.json").write_text(json.dumps(content))


def login(password: str = PASSWORD) -> dict[str, str]:
    """What `docker login` writes for a registry."""
    return {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}


def ran(job: Ran) -> bool:
    """Whether all of it did what it was to do."""
    return not job.errors and set(job.outputs) == {"ran"}


def refusal(job: Ran) -> str:
    """The one error of a job that could not be submitted, in one line."""
    (error,) = job.errors
    assert isinstance(error, DeniedByDrmsError)
    assert "\n" not in str(error)
    assert [info.sub_state for info in job.infos] == ["launch_failure"]
    return str(error)


def test_credentials_of_the_context(run: Callable[..., Ran], image: str, registry: Registry) -> None:
    """Credentials are for the registry of the context's image, or for the serveraddress that is named."""
    assert ran(run(image=image, registry_auth=RIGHT))
    assert ran(
        run(image=image, registry_auth={**RIGHT, "serveraddress": f"https://{registry.address}/v2/"}, pull="always")
    )


def test_credentials_are_for_one_registry(run: Callable[..., Ran], image: str) -> None:
    """Another registry than that which they are for does not see them."""
    job = run(image=image, registry_auth={**RIGHT, "serveraddress": "registry.example.com"})
    assert "no basic auth credentials" in refusal(job)
    job = run(image=IMAGE, registry_auth=RIGHT, fields={**FIELDS, "job_category": image})
    assert "no basic auth credentials" in refusal(job)


def test_no_credentials_and_wrong_ones(run: Callable[..., Ran], image: str, tmp_path: Path, registry: Registry) -> None:
    """What the registry says is told, with the image's name."""
    for settings in ({}, {"registry_auth": {**RIGHT, "password": "wrong"}}):
        text = refusal(run(image=image, **settings))
        assert text.startswith(f"image {image} cannot be pulled: ")
        assert "no basic auth credentials" in text or "unauthorized" in text
    configure(tmp_path, auths={registry.address: login("wrong")})
    assert "unauthorized" in refusal(run(image=image)) or "basic auth" in refusal(run(image=image))


def test_docker_login(run: Callable[..., Ran], image: str, tmp_path: Path, registry: Registry) -> None:
    """What `docker login` wrote is used, wherever DOCKER_CONFIG points to."""
    configure(tmp_path, auths={registry.address: login()})
    assert ran(run(image=image))


@pytest.mark.filterwarnings("ignore:docker-credential-wfl-test not installed")
def test_credential_helper(
    run: Callable[..., Ran], image: str, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper program is asked; one that is not there does not keep a public image from being pulled."""
    configure(tmp_path, credHelpers={registry.address: "wfl-test"})
    text = refusal(run(image=image))
    assert "docker-credential-wfl-test not installed" in text
    helper = tmp_path / "docker-credential-wfl-test"
    helper.write_text(f'#!/bin/sh\necho \'{{"Username": "{USER}", "Secret": "{PASSWORD}"}}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert ran(run(image=image))


def test_login_during_a_session(daemon: Daemon, image: str, tmp_path: Path, registry: Registry) -> None:
    """Somebody who logs in need not start the program again."""
    with pytest.MonkeyPatch.context() as patch, Workflow(DockerContext(base_url=daemon.url, image=image)) as flow:
        patch.setenv("DOCKER_CONFIG", str(tmp_path))
        assert "cannot be pulled" in refusal(read(flow.run("echo", "ran", **FIELDS)))
        configure(tmp_path, auths={registry.address: login()})
        time.sleep(1.1)  # a failed pull is not tried again at once
        assert ran(read(flow.run("echo", "ran", **FIELDS)))


def test_once_for_many(run: Callable[..., Ran], image: str, registry: Registry) -> None:
    """However many jobs want an image at once, it is fetched once, be it missing or always wanted anew."""
    for policy in ("missing", "always"):
        before = registry.pulls(NAME)
        assert ran(run(8, image=image, registry_auth=RIGHT, pull=policy))
        assert registry.pulls(NAME) == before + 1


def test_policies(run: Callable[..., Ran], image: str, registry: Registry, daemon: Daemon) -> None:
    """Missing fetches what is not there, always asks the registry, never does not; a job's own policy comes first."""
    text = refusal(run(image=image, registry_auth=RIGHT, pull="never"))
    assert image in text
    assert "never" in text
    never = {"extensions": {"network": "none", "pull": "never"}}
    assert "never" in refusal(run(image=image, registry_auth=RIGHT, fields=never))
    before = registry.pulls(NAME)
    assert ran(run(image=image, registry_auth=RIGHT))
    fetched = registry.pulls(NAME)
    assert fetched > before
    assert ran(run(image=image, registry_auth=RIGHT, pull="never"))
    assert ran(run(image=image, registry_auth=RIGHT))
    assert registry.pulls(NAME) == fetched
    always = {"extensions": {"network": "none", "pull": "always"}}
    assert ran(run(image=image, registry_auth=RIGHT, fields=always))
    assert registry.pulls(NAME) > fetched
    # What cannot be fetched anew does not run from an old copy.
    assert "cannot be pulled" in refusal(run(image=image, registry_auth={**RIGHT, "password": "wrong"}, pull="always"))
    assert daemon.api.inspect_image(image)


def test_no_such_image(run: Callable[..., Ran], image: str, registry: Registry) -> None:
    """An image that the registry does not have is named, with the registry's words."""
    missing = f"{registry.address}/wfl/nothing:9"
    text = refusal(run(image=missing, registry_auth=RIGHT))
    assert text.startswith(f"image {missing} cannot be pulled: ")
    assert "not found" in text or "unknown" in text
    assert image not in text


def test_image_of_another_platform(run: Callable[..., Ran], image: str, registry: Registry, daemon: Daemon) -> None:
    """An image that is there for another platform is fetched for the wanted one; if there is none, that is said."""
    assert ran(run(image=image, registry_auth=RIGHT))
    wanted = {"extensions": {"network": "none", "platform": "linux/arm64"}}
    before = registry.pulls(NAME)
    text = refusal(run(image=image, registry_auth=RIGHT, fields=wanted))
    assert registry.pulls(NAME) > before
    assert "platform" in text
    daemon.api.remove_image(image)
    assert ran(
        run(image=image, registry_auth=RIGHT, fields={"extensions": {"network": "none", "platform": "linux/amd64"}})
    )


def test_auth_is_checked() -> None:
    """Credentials without a registry are refused; no refusal shows what they are."""
    with pytest.raises(InvalidArgumentError, match="auth has no serveraddress") as told:
        DockerContext(registry_auth=RIGHT)
    assert PASSWORD not in str(told.value)
    with pytest.raises(InvalidArgumentError, match="auth has no 'user': did you mean 'username'") as told:
        DockerContext(image=IMAGE, registry_auth={"user": USER, "password": PASSWORD})
    assert PASSWORD not in str(told.value)
    wrong: Any
    for wrong in (PASSWORD, {"password": PASSWORD.encode()}):
        with pytest.raises(TypeError) as raised:
            DockerContext(image=IMAGE, registry_auth=wrong)
        assert PASSWORD not in str(raised.value)
