"""RemoteContext's settings: what is refused, and that no secret is shown or sent in the clear."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from wfl.context import Context
from wfl.contexts.remote import RemoteContext, clean
from wfl.contexts.remote.settings import Credentials, Place, is_loopback
from wfl.errors import InvalidArgumentError, UnsupportedOperationError

SECRET = "hunter2-hunter2"  # noqa: S105 - a test's
FAR, NEAR = "https://host.example:8443/base", "http://127.0.0.1:8080"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WFL_REMOTE_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"base_url": 1}, TypeError, "base_url"),
        ({"base_url": "host:8443"}, InvalidArgumentError, "expected 'https://"),
        ({"base_url": "ftp://host"}, InvalidArgumentError, "expected 'https://"),
        ({"base_url": "https://"}, InvalidArgumentError, "expected 'https://"),
        ({"base_url": "https://host:port"}, InvalidArgumentError, "base_url cannot be read"),
        ({"base_url": "https://host/x?y=1"}, InvalidArgumentError, "after its path"),
        ({"base_url": "https://host /x"}, InvalidArgumentError, "expected 'https://"),
        ({"base_url": f"https://me:{SECRET}@host"}, InvalidArgumentError, "give auth="),
        ({"token": 1}, TypeError, "token"),
        ({"token": f"{SECRET}\n"}, InvalidArgumentError, "no header takes"),
        ({"token": ""}, InvalidArgumentError, "token is empty"),
        ({"auth": SECRET}, TypeError, "expected .user, password."),
        ({"auth": ("me", SECRET, "x")}, TypeError, "expected .user, password."),
        ({"auth": ("a:b", SECRET)}, InvalidArgumentError, "':'"),
        ({"auth": ("me", SECRET), "token": SECRET}, InvalidArgumentError, "both given"),
        ({"protocol": "v2"}, InvalidArgumentError, "valid are auto"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"timeout": 0}, InvalidArgumentError, "timeout"),
        ({"patience": float("inf")}, InvalidArgumentError, "patience"),
        ({"insecure": "yes"}, TypeError, "insecure"),
        ({"verify": 1.5}, TypeError, "verify"),
        ({"verify": "/no/such/file"}, InvalidArgumentError, "there is no /no/such/file"),
        ({"cert": ("/no/such/file",)}, InvalidArgumentError, "there is no /no/such/file"),
        ({"cert": ("a", "b", "c")}, TypeError, "certificate, key"),
        ({"base_url": "http://host.example", "token": SECRET}, InvalidArgumentError, "insecure=True"),
        ({"base_url": "http://10.0.0.1", "auth": ("me", SECRET)}, InvalidArgumentError, "insecure=True"),
    ],
)
def test_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    """What cannot be meant is refused by its name; no secret is in the words."""
    with pytest.raises(error, match=words) as caught:
        RemoteContext(**{"base_url": FAR, **settings})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "http://host.example"},
        {"base_url": "http://host.example", "token": SECRET, "insecure": True},
        {"base_url": "http://localhost:8080", "token": SECRET},
        {"base_url": "http://[::1]:8080", "token": SECRET},
        {"base_url": "http://127.9.9.9/base/", "auth": ["me", SECRET]},
        {"token": SECRET, "verify": False},
    ],
)
def test_taken(settings: dict[str, Any]) -> None:
    """Credentials go to this machine, or over TLS, or where somebody says that they know."""
    context = RemoteContext(**{"base_url": FAR, **settings})
    assert not context.place.base_url.endswith("/")


def test_loopback_by_number_and_name() -> None:
    """What only looks like this machine is another one."""
    assert is_loopback("http://a.localhost:1")
    assert not is_loopback("http://127.0.0.1.example")
    assert not is_loopback("http://localhost.example")


def test_verification_is_on(tmp_path: Path) -> None:
    """Servers are verified unless that is switched off; paths are absolute, whatever directory is gone to."""
    authority = tmp_path / "ca.pem"
    authority.write_text("")
    assert RemoteContext(FAR).place.verify is True
    assert RemoteContext(FAR, verify=authority).place.verify == str(authority)


def test_secrets_are_shown_by_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither repr, nor str, nor pickle, nor a log has them; a server's words that quote them are scrubbed."""
    caplog.set_level(logging.DEBUG)
    contexts = [RemoteContext(FAR, token=SECRET), RemoteContext(FAR, auth=("me", SECRET))]
    for context in contexts:
        shown = [repr(context), str(vars(context)), f"{context.credentials}", f"{context.place}"]
        sent = context.credentials.headers()["Authorization"]
        shown += [context.credentials.scrubbed(f"I do not know {SECRET} nor {sent}")]
        assert not any(SECRET in text or sent.split()[1] in text for text in shown)
        with pytest.raises(TypeError, match="secrets"):
            pickle.dumps(context.credentials)
        assert SECRET not in json.dumps(context.place.to_dict())
    assert SECRET not in caplog.text
    assert "host.example" in repr(contexts[0])


def test_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """WFL_REMOTE_TOKEN is the token of who gives neither token nor auth."""
    monkeypatch.setenv("WFL_REMOTE_TOKEN", "theirs")
    assert RemoteContext(FAR).credentials.headers() == {"Authorization": "Bearer theirs"}
    assert RemoteContext(FAR, token="mine").credentials.headers() == {"Authorization": "Bearer mine"}  # noqa: S106
    assert RemoteContext(FAR, auth=("a", "b")).credentials.headers() == {"Authorization": "Basic YTpi"}
    with pytest.raises(InvalidArgumentError, match="insecure"):
        RemoteContext("http://host.example")
    monkeypatch.setenv("WFL_REMOTE_TOKEN", "")
    assert not RemoteContext("http://host.example").credentials


def test_place_goes_through_json(tmp_path: Path) -> None:
    """What the helper process is told is what the program has."""
    files = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    for file in files:
        file.write_text("")
    place = RemoteContext(NEAR, cert=tuple(map(str, files)), timeout=5).place
    assert Place.from_dict(json.loads(json.dumps(place.to_dict()))) == place
    assert bool(Credentials(**json.loads(json.dumps(Credentials(token=SECRET).to_dict()))))


def test_settings_in_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with settings, as WFL_CONTEXT has it, gives numbers and switches their types."""
    monkeypatch.setattr("wfl.context.BUILT_IN", {"remote": "wfl.contexts.remote:RemoteContext"})
    found = Context.named(f"remote?base_url={FAR}&verify=false&timeout=5&protocol=v1&detach=true")
    assert isinstance(found, RemoteContext)
    assert (found.place.base_url, found.place.verify, found.place.timeout) == (FAR, False, 5.0)
    assert found.detach


def test_cleaning_needs_sessions() -> None:
    """The compatible protocol has none, so nothing is removed by their names."""
    with pytest.raises(UnsupportedOperationError, match="no sessions"):
        clean("s", RemoteContext(NEAR, protocol="compatible"))
