"""The daemon's API through docker-py: one connection pool, few words, errors in wfl's terms."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import docker
import docker.errors
import requests
import urllib3
from docker.tls import TLSConfig
from docker.transport.unixconn import UnixHTTPAdapter

from wfl.contexts.containers import staging
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    SessionManagementError,
    WflError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

API = "1.41"
"""The API version that is spoken: that of Docker 20.10, which Podman speaks, too."""
POOL = 64
"""Connections that are kept: more than the requests and followers there are at once."""
_BAD_REQUEST, _NOT_FOUND, _CONFLICT = 400, 404, 409
_WRONG_STATE = ("is not paused", "already paused", "is not running", "container state improper", "already in use")
"""What some daemons answer with status 500 where others have 409."""


class NotThereError(InvalidStateError):
    """The daemon was reached, and it does not know this container or image."""


class _OnePool(UnixHTTPAdapter):  # type: ignore[misc] # docker-py has no types
    """Docker-py keys its pools by URL, of which every container has its own, and loses requests as it drops pools."""

    def get_connection(self, url: str, proxies: object = None) -> Any:
        del url
        return super().get_connection("http+docker://localhost", proxies)


class Client:
    """One daemon. Every method may be called from any thread.

    Raises DrmCommunicationError where the daemon gave no answer (so that nobody knows whether it did what it was
    asked for), NotThereError, InvalidStateError, InvalidArgumentError or DeniedByDrmsError where it did.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Connect as `settings` say: base_url, tls (None or the arguments of docker.tls.TLSConfig), timeout, auth."""
        url, timeout, tls = settings["base_url"], settings["timeout"], settings.get("tls")
        self.url: str = url
        self._auth: Mapping[str, str] | None = settings.get("auth")
        try:
            self._api = docker.APIClient(
                base_url=url, version=API, timeout=timeout, tls=TLSConfig(**tls) if tls else False, max_pool_size=POOL
            )
        except docker.errors.DockerException as error:
            raise SessionManagementError(f"{url}: {error}") from error
        adapter = self._api.get_adapter(self._api.base_url + "/")
        if isinstance(adapter, UnixHTTPAdapter):
            self._api.mount(
                "http+docker://", _OnePool(f"http+unix://{adapter.socket_path}", timeout, max_pool_size=POOL)
            )

    def close(self) -> None:
        """Close all connections."""
        self._api.close()

    def version(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        with _in_our_words(self.url):
            found: dict[str, Any] = {**self._api.version(), **self._api.info()}
            return found

    # -- containers --

    def create(self, body: Mapping[str, Any], query: Mapping[str, str]) -> str:
        """Make a container; its id."""
        with _in_our_words(self.url):
            url = f"{self._base}/containers/create"
            response = self._api.post(url, params=query, json=body, timeout=self._api.timeout)
            return str(self._checked(response).json()["Id"])

    def start(self, id: str) -> None:
        """Start it; nothing happens to one that was started."""
        with _in_our_words(self.url):
            self._api.start(id)

    def kill(self, id: str, signal: str = "SIGKILL") -> None:
        """Send a signal to its first process."""
        with _in_our_words(self.url):
            self._api.kill(id, signal)

    def pause(self, id: str) -> None:
        """Freeze it."""
        with _in_our_words(self.url):
            self._api.pause(id)

    def unpause(self, id: str) -> None:
        """Let it go on."""
        with _in_our_words(self.url):
            self._api.unpause(id)

    def remove(self, id: str, *, force: bool = True) -> None:
        """Remove it with its anonymous volumes; one that is not there is removed already."""
        try:
            with _in_our_words(self.url):
                self._api.remove_container(id, v=True, force=force)
        except NotThereError:
            return
        except InvalidStateError:  # somebody else is just removing it
            return

    def inspect(self, id: str) -> dict[str, Any]:
        """All that is known of it."""
        with _in_our_words(self.url):
            found: dict[str, Any] = self._api.inspect_container(id)
            return found

    def list(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """The containers with these labels."""
        with _in_our_words(self.url):
            wanted = [f"{name}={value}" for name, value in labels.items()]
            found: list[dict[str, Any]] = self._api.containers(all=True, filters={"label": wanted})
            return found

    def events(self, labels: Mapping[str, str], kinds: Sequence[str]) -> Any:
        """The stream of events from now on, as dicts; its `close()` ends it from another thread."""
        with _in_our_words(self.url):
            wanted = [f"{name}={value}" for name, value in labels.items()]
            return self._api.events(decode=True, filters={"type": "container", "label": wanted, "event": list(kinds)})

    def logs(self, id: str, *, follow: bool) -> Iterator[bytes]:
        """The output in the daemon's frames, from the beginning, to its end (or, with `follow`, that of the job)."""
        with _in_our_words(self.url):
            url = f"{self._base}/containers/{id}/logs"
            params = {"stdout": "1", "stderr": "1", "follow": str(int(follow))}
            response = self._checked(self._api.get(url, params=params, stream=True, timeout=(10, None)))
            with response:
                yield from response.raw.stream(1 << 18, decode_content=False)

    def attach_input(self, id: str) -> Any:
        """A socket to its standard input."""
        with _in_our_words(self.url):
            found = self._api.attach_socket(id, params={"stdin": 1, "stream": 1})
            return getattr(found, "_sock", found)

    def put(self, id: str, chunks: Iterable[bytes]) -> None:
        """Unpack a tar archive at its root."""
        with _in_our_words(self.url):
            url = f"{self._base}/containers/{id}/archive"
            self._checked(self._api.put(url, params=staging.PUT_PARAMETERS, data=chunks, timeout=self._api.timeout))

    def get(self, id: str, path: str) -> Iterator[bytes]:
        """A file or directory as a tar archive."""
        with _in_our_words(self.url):
            chunks, _ = self._api.get_archive(id, path, chunk_size=1 << 20)
            yield from chunks

    # -- images --

    def has_image(self, image: str) -> bool:
        """Whether it is there."""
        try:
            with _in_our_words(self.url):
                self._api.inspect_image(image)
        except NotThereError:
            return False
        return True

    def pull(self, image: str, platform: str | None) -> None:
        """Fetch an image, with the credentials of the context or of the docker configuration."""
        from docker.utils import parse_repository_tag

        repository, tag = parse_repository_tag(image)
        with _in_our_words(self.url):
            steps = self._api.pull(
                repository, tag or "latest", stream=True, decode=True, auth_config=self._auth, platform=platform
            )
            for step in steps:
                if "error" in step:
                    raise DeniedByDrmsError(f"image {image} cannot be pulled: {step['error']}")

    @property
    def _base(self) -> str:
        return f"{self._api.base_url}/v{API}"

    def _checked(self, response: requests.Response) -> requests.Response:
        if response.status_code >= _BAD_REQUEST:
            docker.errors.create_api_error_from_http_exception(_http_error(response))
        return response


def _http_error(response: requests.Response) -> requests.HTTPError:
    return requests.HTTPError(response.reason, response=response)


@contextmanager
def _in_our_words(url: str) -> Iterator[None]:
    try:
        yield
    except WflError:
        raise
    except docker.errors.APIError as error:
        raise _translated(error) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, json.JSONDecodeError) as error:
        raise DrmCommunicationError(f"{url}: {_innermost(error)}") from error
    except docker.errors.DockerException as error:
        raise DrmCommunicationError(f"{url}: {error}") from error


def _translated(error: docker.errors.APIError) -> WflError:
    words = str(error.explanation or error).strip()
    status = error.status_code
    if status == _NOT_FOUND:
        return NotThereError(words)
    if status == _CONFLICT or any(text in words for text in _WRONG_STATE):
        return InvalidStateError(words)
    if status == _BAD_REQUEST:
        return InvalidArgumentError(words)
    return DeniedByDrmsError(words)


def _innermost(error: BaseException) -> str:
    """The reason below requests' and urllib3's wrappings."""
    while isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError) and error.__context__:
        error = error.__context__
    return str(error) or type(error).__name__
