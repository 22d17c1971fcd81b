"""The daemon's API through docker-py: one connection pool, few words, errors in wfl's terms."""

from __future__ import annotations

import json
import threading
import time
from base64 import urlsafe_b64decode
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import docker
import docker.auth
import docker.errors
import requests
import urllib3
from docker.utils import parse_repository_tag
from requests.structures import CaseInsensitiveDict

from wfl.contexts.containers import connection
from wfl.contexts.containers.settings import configuration, host_of, registry_of
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    UnsupportedOperationError,
    WflError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

API = "1.41"
"""The API version that is spoken wherever it can be: that of Docker 20.10, which Podman speaks, too."""
CONNECT = 10.0
"""Seconds in which there must be a connection for a stream."""
OVERLAP = 2.0
"""Seconds of the past that are told again: the daemon begins to listen a little after it has answered."""
QUIET = 300.0
"""Seconds of silence after which a stream of events may be one that nobody feeds any more."""
REQUESTS = 8
"""Requests at once: the daemon starts no more containers a second with more, they only wait longer."""
_BAD_REQUEST, _NOT_FOUND, _CONFLICT = 400, 404, 409
_STAT = "X-Docker-Container-Path-Stat"
"""A header with what a path is, in base64: Docker's with + and /, Podman's with - and _."""
_LINK = 1 << 27
"""Of a file's mode as Go has it."""
_UNANSWERED = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_KEEP_DIRECTORIES = {"noOverwriteDirNonDir": "true"}
"""Of `PUT /containers/{id}/archive`. Without it, a file that is copied to where a directory is replaces all of
it, and a directory copied to where a link to one is (as /bin often is) replaces the link."""
_WRONG_STATE = ("is not paused", "already paused", "is not running", "container state improper", "already in use")
"""What some daemons answer with status 500 where others have 409."""


class NotThereError(InvalidStateError):
    """The daemon was reached, and it does not know this container or image."""


class UnsentError(DrmCommunicationError):
    """There was no connection, so nothing was asked for."""


class Client:
    """One daemon. Every method may be called from any thread.

    Raises DrmCommunicationError where the daemon gave no answer (so that nobody knows whether it did what it was
    asked for), NotThereError, InvalidStateError, InvalidArgumentError or DeniedByDrmsError where it did.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Connect as `settings` say: base_url, tls (None or the arguments of docker.tls.TLSConfig), timeout, auth.

        Optional are cure, what to do where no daemon is reached, and remote, its command at the end of ssh://.
        """
        self.url: str = settings["base_url"]
        self._auth: Mapping[str, str] | None = settings.get("auth")
        self._places = threading.Semaphore(REQUESTS)
        self._streams: set[requests.Response] = set()
        self._closed = False
        self._api = connection.connected(settings, API)
        try:
            self._api._version = self._spoken(self._greet(settings.get("cure") or ""))  # noqa: SLF001 - docker-py takes it only before it can be known
        except BaseException:
            self._api.close()
            raise

    def _greet(self, cure: str) -> dict[str, Any]:
        """What the daemon answers to the first question; or in one line why there is none, and what to do."""
        try:
            response = self._api.get(f"{self._api.base_url}/_ping", timeout=self._api.timeout)
            if "Libpod-Api-Version" in response.headers:  # Podman, whose /version takes most of a second
                return {
                    "ApiVersion": response.headers["Api-Version"],
                    "Version": response.headers["Libpod-Api-Version"],
                }
            response = self._api.get(f"{self._api.base_url}/version", timeout=self._api.timeout)
        except _UNANSWERED as error:
            raise DrmCommunicationError(connection.unreached(self.url, error, cure)) from error
        with suppress(ValueError):
            found = response.json()
            if isinstance(found, dict) and "ApiVersion" in found:
                return found
        if "HTTPS server" in response.text:
            raise DrmCommunicationError(f"{self.url}: the daemon speaks TLS only. {connection.TLS_CURE}")
        what = f"what answers there is no daemon of containers (HTTP {response.status_code})"
        raise DrmCommunicationError(f"{self.url}: {what}. {cure}")

    def _spoken(self, said: Mapping[str, Any]) -> str:
        """API, or the oldest version that a newer daemon still speaks."""
        highest, lowest = said["ApiVersion"], said.get("MinAPIVersion") or API
        if _parts(highest) < _parts(API):
            it_is = f"{said.get('Version')} (API {highest})"
            msg = (
                f"{self.url}: the daemon is too old: {it_is}; it must be Docker 20.10 or Podman 4, or later (API {API})"
            )
            raise UnsupportedOperationError(msg)
        return str(max(API, lowest, key=_parts))

    def close(self) -> None:
        """Close all connections, also those that somebody is just reading from."""
        self._closed = True
        self.hang_up()
        self._api.close()

    def hang_up(self) -> None:
        """End all streams that there are."""
        for response in list(self._streams):
            connection.cut(response)

    def info(self) -> dict[str, Any]:
        """What the daemon says of itself and its machine; Podman takes a third of a second for that."""
        found: dict[str, Any] = self._ask("GET", "info")
        return found

    # -- containers --

    def create(self, body: Mapping[str, Any], query: Mapping[str, str]) -> str:
        """Make a container; its id."""
        return str(self._ask("POST", "containers/create", query, body)["Id"])

    def start(self, id: str) -> None:
        """Start it; nothing happens to one that was started."""
        self._ask("POST", f"containers/{id}/start")

    def kill(self, id: str, signal: str = "SIGKILL") -> None:
        """Send a signal to its first process."""
        self._ask("POST", f"containers/{id}/kill", {"signal": signal})

    def pause(self, id: str) -> None:
        """Freeze it."""
        self._ask("POST", f"containers/{id}/pause")

    def unpause(self, id: str) -> None:
        """Let it go on."""
        self._ask("POST", f"containers/{id}/unpause")

    def remove(self, id: str) -> None:
        """Remove it with its anonymous volumes; one that is not there is removed already."""
        try:
            self._ask("DELETE", f"containers/{id}", {"v": "1", "force": "1"})
        except NotThereError:
            return
        except InvalidStateError:  # somebody else is just removing it
            return

    def discard(self, id: str) -> None:
        """Remove one that was never started; raises InvalidStateError where it runs by now."""
        with suppress(NotThereError):
            self._ask("DELETE", f"containers/{id}", {"v": "1"})

    def inspect(self, id: str) -> dict[str, Any]:
        """All that is known of it."""
        found: dict[str, Any] = self._ask("GET", f"containers/{id}/json")
        return found

    def list(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """The containers with these labels."""
        wanted = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
        found: list[dict[str, Any]] = self._ask("GET", "containers/json", {"all": "1", "filters": wanted})
        return found

    def events(self, labels: Mapping[str, str], kinds: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """The stream of events from now on; its first item is None, and says that it is connected.

        It ends when the connection does, and when nothing was told for QUIET seconds.
        """
        wanted = [f"{name}={value}" for name, value in labels.items()]
        filters = {"type": ["container"], "label": wanted, "event": list(kinds)}
        params = {"filters": json.dumps(filters), "since": f"{time.time() - OVERLAP:.3f}"}
        with _in_our_words(self.url), suppress(urllib3.exceptions.ReadTimeoutError):
            yield from _objects(self._stream("events", params, (CONNECT, QUIET)))

    def logs(self, id: str, *, follow: bool, stamped: bool = False, stdout: bool = True) -> Generator[bytes]:
        """The output in the daemon's frames, from the beginning, to its end (or, with `follow`, that of the job).

        `stamped`: each frame begins with the time, and a blank. Without `stdout`: the errors alone.
        """
        with _in_our_words(self.url):
            params = {
                "stdout": str(int(stdout)),
                "stderr": "1",
                "follow": str(int(follow)),
                "timestamps": str(int(stamped)),
            }
            timeout = (CONNECT, None if follow else self._api.timeout)
            yield from self._stream(f"containers/{id}/logs", params, timeout)

    def attach_input(self, id: str) -> connection.Input:
        """A socket to its standard input."""
        with _in_our_words(self.url):
            url = f"{self._base}/containers/{id}/attach"
            headers, params = {"Connection": "Upgrade", "Upgrade": "tcp"}, {"stdin": 1, "stream": 1}
            response = self._api.post(url, params=params, headers=headers, stream=True, timeout=self._api.timeout)
            return connection.Input(self._checked(response))

    def put(self, id: str, chunks: Iterable[bytes], place: str = "/") -> None:
        """Unpack a tar archive in a directory."""
        with self._request():
            url, params = f"{self._base}/containers/{id}/archive", {"path": place, **_KEEP_DIRECTORIES}
            self._checked(self._api.put(url, params=params, data=chunks, timeout=self._api.timeout))

    def get(self, id: str, path: str) -> Generator[bytes]:
        """A file or directory as a tar archive."""
        with self._request():
            response = self._archive(id, path)
            try:
                found = json.loads(urlsafe_b64decode(response.headers[_STAT].replace("+", "-").replace("/", "_")))
                if found.get("linkTarget") and found.get("mode", 0) & _LINK:  # Docker gives the link itself
                    response.close()
                    response = self._archive(id, found["linkTarget"])
                yield from response.iter_content(1 << 20)
            finally:
                response.close()

    def _archive(self, id: str, path: str) -> requests.Response:
        url, timeout = f"{self._base}/containers/{id}/archive", self._api.timeout
        return self._checked(self._api.get(url, params={"path": path}, stream=True, timeout=timeout))

    # -- images --

    def images(self) -> Sequence[dict[str, Any]]:
        """The images that are there."""
        found: list[dict[str, Any]] = self._ask("GET", "images/json")
        return found

    def pull(self, image: str, platform: str | None) -> None:
        """Fetch an image, with the credentials of the context or of the docker configuration."""
        repository, tag = parse_repository_tag(image)
        credentials, doubt = self._credentials(image)
        headers = {"X-Registry-Auth": docker.auth.encode_header(dict(credentials)).decode()} if credentials else None
        params = {"fromImage": repository, "tag": tag or "latest", **({"platform": platform} if platform else {})}
        try:
            with _in_our_words(self.url):
                for step in _objects(self._stream("images/create", params, (CONNECT, QUIET), "POST", headers)):
                    if step is not None and "error" in step:
                        raise DeniedByDrmsError(str(step["error"]).strip())
        except DrmCommunicationError:
            raise
        except WflError as error:
            raise DeniedByDrmsError(f"image {image} cannot be pulled: {error}{doubt}") from error

    def _credentials(self, image: str) -> tuple[Mapping[str, str], str]:
        """Those for the image's registry and no other, and what went wrong as they were looked for."""
        registry = registry_of(image)
        if self._auth is not None and host_of(self._auth["serveraddress"]) == registry:
            return self._auth, ""
        try:  # read anew each time: somebody may have logged in
            config = configuration()
            found = docker.auth.load_config(config_dict=config).resolve_authconfig(registry) if config else None
        except (docker.errors.DockerException, ValueError, Warning) as error:  # an image may be public all the same
            return {}, f" (no credentials could be had from the docker configuration: {error})"
        return found or {}, ""

    def _stream(
        self,
        path: str,
        params: Mapping[str, str],
        timeout: tuple[float, float | None],
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[bytes]:
        """What comes, from a connection that `hang_up` cuts; first b"" when it has begun."""
        url = f"{self._base}/{path}"
        response = self._api.request(method, url, params=params, headers=headers, stream=True, timeout=timeout)
        with self._checked(response):
            self._streams.add(response)
            try:
                if self._closed:
                    raise DrmCommunicationError(f"{self.url}: the connections were closed")
                yield b""
                yield from response.raw.stream(1 << 18, decode_content=False)
            finally:
                self._streams.discard(response)

    def _ask(
        self, method: str, path: str, params: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> Any:
        """One request, and what its answer says: by the adapter alone, as the layers around it cost as much again."""
        api, asked = self._api, requests.PreparedRequest()
        asked.method, asked.url = method, f"{self._base}/{path}" + (f"?{urlencode(params)}" if params else "")
        asked.body = None if body is None else json.dumps(body)
        asked.headers = CaseInsensitiveDict(api.headers)
        if asked.body is not None:
            asked.headers["Content-Type"] = "application/json"
        if method == "POST":
            asked.headers["Content-Length"] = str(len(asked.body or ""))
        with self._request():
            send = api.get_adapter(asked.url).send
            response = send(asked, timeout=api.timeout, verify=api.verify, cert=api.cert, proxies=api.proxies)
            return json.loads(self._checked(response).content or b"null")

    @contextmanager
    def _request(self) -> Iterator[None]:
        """One of the few requests at a time; streams that last do not count."""
        with self._places, _in_our_words(self.url):
            yield

    @property
    def _base(self) -> str:
        return f"{self._api.base_url}/v{self._api.api_version}"

    def _checked(self, response: requests.Response) -> requests.Response:
        if response.status_code >= _BAD_REQUEST:
            docker.errors.create_api_error_from_http_exception(_http_error(response))
        return response


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _objects(pieces: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    """What comes as JSON, a line each; None where a piece is empty."""
    rest = b""
    for piece in pieces:
        if not piece:
            yield None
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, filter(None, map(bytes.strip, lines)))


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
    except (*_UNANSWERED, json.JSONDecodeError) as error:
        why = connection.reason(error)
        kind = UnsentError if isinstance(why, ConnectionRefusedError | FileNotFoundError) else DrmCommunicationError
        raise kind(f"{url}: {connection.words(why)}") from error
    except docker.errors.DockerException as error:
        raise DrmCommunicationError(f"{url}: {error}") from error


def _translated(error: docker.errors.APIError) -> WflError:
    words = str(error.explanation or error).strip()
    status = error.status_code
    if status == _NOT_FOUND or "no such container" in words:  # Podman, while it removes one: status 500
        return NotThereError(words)
    if status == _CONFLICT or any(text in words for text in _WRONG_STATE):
        return InvalidStateError(words)
    if status == _BAD_REQUEST:
        return InvalidArgumentError(words)
    return DeniedByDrmsError(words)
