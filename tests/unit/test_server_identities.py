"""Identities of the job server: tokens, passwords, certificates; what is kept, what is refused, what is noticed."""

import asyncio
import base64
import json
import os
import stat
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from wfl.errors import InvalidArgumentError, SessionManagementError
from wfl.server import identities as module
from wfl.server.identities import Anybody, Credentials, Identities, Identity, TooManyError, fingerprint_of

PEM = """-----BEGIN CERTIFICATE-----
{}
-----END CERTIFICATE-----
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where identities are kept."""
    return tmp_path / "identities.json"


@pytest.fixture
def identities(path: Path, monkeypatch: pytest.MonkeyPatch) -> Identities:
    """None yet; the file is looked at each time, and passwords are computed quickly."""
    monkeypatch.setattr(module, "LOOK", 0.0)
    monkeypatch.setattr(module, "_COST", {**module._COST, "n": 16})  # noqa: SLF001 - 50 ms each would add up
    made = Identities(path)
    made.passwords = 3
    return made


def who(identities: Identities, authorization: str | None = None, **more: str) -> Identity | None:
    """Who that is."""
    return asyncio.run(identities.identify(Credentials(authorization, **more)))


def basic(name: str, password: str) -> str:
    """The header of HTTP basic authentication."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def named(identity: Identity | None) -> str | None:
    """The name of who that is."""
    return identity.name if identity else None


def test_a_token_is_whose_it_is(identities: Identities) -> None:
    """A token names its identity and whether that is an administrator; an identity may have several."""
    first, second = identities.create_token("alice"), identities.create_token("alice")
    root = identities.create_token("root", admin=True)
    assert [named(who(identities, f"Bearer {one}")) for one in (first, second)] == ["alice", "alice"]
    assert named(who(identities, f"bearer  {first} ")) == "alice"
    found = who(identities, f"Bearer {root}")
    assert found is not None
    assert found.admin


def test_only_hashes_are_kept(identities: Identities, path: Path) -> None:
    """Neither tokens nor passwords are in the file, which nobody else can read."""
    token = identities.create_token("alice")
    identities.set_password("alice", "correct horse")
    text = path.read_text()
    assert token not in text
    assert token.rpartition("_")[2] not in text
    assert "correct horse" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry for entry in os.listdir(path.parent) if entry != path.name] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"),
        lambda token: token.replace("wfl_", "wfl-"),
        lambda token: f"wfl_{'0' * 12}_{token.rpartition('_')[2]}",
        lambda _: "",
        lambda _: "wfl_",
        lambda token: token.swapcase(),
    ],
)
def test_a_wrong_token_is_nobody(identities: Identities, change: Callable[[str], str]) -> None:
    """A token of which anything is different is none."""
    token = identities.create_token("alice")
    assert who(identities, f"Bearer {change(token)}") is None


@pytest.mark.parametrize("header", [None, "", "Bearer", "Token x", "Basic", "Basic !", "Basic QQ==", "Negotiate abc"])
def test_nothing_to_go_by(identities: Identities, header: str | None) -> None:
    """Without a header, or with one of another kind, nobody is known."""
    identities.create_token("alice")
    assert who(identities, header) is None


def test_a_token_that_is_over(identities: Identities) -> None:
    """A token with a lifetime is none after that, also for a connection that stays open."""
    token = identities.create_token("alice", lifetime=timedelta(seconds=3600))
    identity = who(identities, f"Bearer {token}")
    assert identity is not None
    assert identities.still(identity)
    over = identities.create_token("alice", lifetime=timedelta(seconds=-1))
    assert who(identities, f"Bearer {over}") is None


def test_revoking(identities: Identities, path: Path) -> None:
    """A revoked token works no longer, also where another process did it; all of an identity go by its name."""
    tokens = [identities.create_token("alice") for _ in range(3)]
    kept = identities.create_token("bob")
    found = [who(identities, f"Bearer {token}") for token in tokens]
    other = Identities(path)
    assert other.revoke(tokens[0].split("_")[1]) == 1
    assert who(identities, f"Bearer {tokens[0]}") is None
    assert [identities.still(one) for one in found if one] == [False, True, True]
    assert other.revoke("alice") == 2
    assert [identities.still(one) for one in found if one] == [False, False, False]
    assert named(who(identities, f"Bearer {kept}")) == "bob"
    with pytest.raises(InvalidArgumentError, match="there is no token 'alise'"):
        other.revoke("alise")


def test_passwords(identities: Identities) -> None:
    """The right password is its identity; a wrong one, another's, and that of nobody are not."""
    identities.set_password("alice", "correct: höRse")
    identities.create_token("bob")
    for _ in range(2):  # the second time it is remembered
        assert named(who(identities, basic("alice", "correct: höRse"))) == "alice"
    assert who(identities, basic("alice", "correct: horse")) is None
    assert who(identities, basic("bob", "correct: höRse")) is None
    assert who(identities, basic("bob", "")) is None
    assert who(identities, basic("carol", "correct: höRse")) is None


def test_a_changed_password(identities: Identities) -> None:
    """The old one is not valid any more, although it was right a moment ago; nor are connections opened with it."""
    identities.set_password("alice", "first password")
    identity = who(identities, basic("alice", "first password"))
    assert identity is not None
    identities.set_password("alice", "second password")
    assert who(identities, basic("alice", "first password")) is None
    assert not identities.still(identity)
    identities.set_password("alice", None)
    assert who(identities, basic("alice", "second password")) is None


def test_guessing(identities: Identities) -> None:
    """After some wrong passwords from one address no more are looked at from there; what was right goes on."""
    identities.set_password("alice", "correct horse")
    assert named(who(identities, basic("alice", "correct horse"), address="a")) == "alice"
    for number in range(3):
        assert who(identities, basic("alice", f"wrong {number}"), address="a") is None
    with pytest.raises(TooManyError):
        who(identities, basic("alice", "wrong again"), address="a")
    assert named(who(identities, basic("alice", "correct horse"), address="a")) == "alice"
    assert who(identities, basic("alice", "wrong 4"), address="b") is None


def gathered(identities: Identities, *given: tuple[str, str, str]) -> list[str | None]:
    """Who those are that come at once: name, password, address; "later": told to come again."""

    async def one(name: str, password: str, address: str) -> str | None:
        try:
            return named(await identities.identify(Credentials(basic(name, password), address=address)))
        except TooManyError:
            return "later"

    async def all_() -> list[str | None]:
        return await asyncio.gather(*(one(*each) for each in given))

    return asyncio.run(all_())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that are computed, each of which takes a while."""
    found: list[str] = []
    fits = module._fits  # noqa: SLF001 - what is counted

    def count(password: str, kept: str) -> bool:
        found.append(password)
        time.sleep(0.02)
        return fits(password, kept)

    monkeypatch.setattr(module, "_fits", count)
    return found


def test_guessing_at_once(identities: Identities, computed: list[str]) -> None:
    """Guesses that come at once are counted as they come: no more are looked at than one after another."""
    identities.set_password("alice", "correct horse")
    found = gathered(identities, *(("alice", f"wrong {number}", "a") for number in range(50)))
    assert len(computed) == 3
    assert found.count("later") == 47
    with pytest.raises(TooManyError, match="wait a minute"):
        who(identities, basic("alice", "correct horse"), address="a")


def test_guesses_are_in_nobodys_way(identities: Identities, computed: list[str]) -> None:
    """Of one address few are looked at, and few in all; the rest is refused at once and waits for nothing."""
    identities.set_password("alice", "correct horse")
    one = [(f"nobody{number}", "guess", "a") for number in range(50)]
    assert gathered(identities, *one, ("alice", "correct horse", "b"))[-1] == "alice"
    assert len(computed) == module._MOST_EACH + 1  # noqa: SLF001 - the bound
    many = [(f"nobody{number}", "guess", str(number)) for number in range(50)]
    assert gathered(identities, *many).count("later") == 50 - module._MOST  # noqa: SLF001 - the bound


def test_a_right_password_from_many_connections(identities: Identities, computed: list[str]) -> None:
    """It is computed once, and is no guess."""
    identities.set_password("alice", "correct horse")
    for _ in range(2):
        assert gathered(identities, *[("alice", "correct horse", "a")] * 50) == ["alice"] * 50
    assert len(computed) == 1
    for number in range(3):
        assert who(identities, basic("alice", f"wrong {number}"), address="a") is None


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
def test_passwords_that_are_none(identities: Identities, password: str) -> None:
    """A password has a length that can be meant."""
    with pytest.raises(InvalidArgumentError, match="8 to 1024"):
        identities.set_password("alice", password)


def test_names_that_are_nobodys_take_as_long(identities: Identities, computed: list[str]) -> None:
    """A password is computed for a name that is not there, too: who guesses learns no names."""
    identities.set_password("alice", "correct horse")
    who(identities, basic("alice", "wrong horse"))
    who(identities, basic("nobody", "wrong horse"))
    assert len(computed) == 2


def test_certificates(identities: Identities) -> None:
    """A certificate that was added is its identity; a header goes before it, and a wrong one is not made good by it."""
    der = b"some certificate"
    pem = PEM.format(base64.b64encode(der).decode())
    fingerprint = identities.add_certificate("alice", pem)
    assert fingerprint == fingerprint_of(der)
    identity = who(identities, certificate=fingerprint)
    assert named(identity) == "alice"
    assert identity is not None
    assert identities.still(identity)
    assert who(identities, certificate=fingerprint_of(b"another")) is None
    assert who(identities, "Bearer wrong", certificate=fingerprint) is None
    token = identities.create_token("bob")
    assert named(who(identities, f"Bearer {token}", certificate=fingerprint)) == "bob"
    with pytest.raises(InvalidArgumentError, match="already"):
        identities.add_certificate("bob", pem)
    with pytest.raises(InvalidArgumentError, match="no certificate"):
        identities.add_certificate("bob", "nothing")


def test_removing_an_identity(identities: Identities) -> None:
    """It has no secret any more."""
    empty = [identities.empty]
    token = identities.create_token("alice")
    empty.append(identities.empty)
    identities.remove("alice")
    assert [*empty, identities.empty] == [True, False, True]
    assert who(identities, f"Bearer {token}") is None
    with pytest.raises(InvalidArgumentError, match="no identity 'alice'"):
        identities.remove("alice")


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\n", "-a", "a:b", "x" * 65, "ä"])
def test_names(identities: Identities, name: str) -> None:
    """A name has letters, digits and a few signs: it is in logs, in addresses and before a password's colon."""
    with pytest.raises(InvalidArgumentError, match="is no name"):
        identities.create_token(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}x",
        '{"identities": [{"name": "a", "more": 1}]}',
        '{"identities": [{"name": "a"}, {"name": "a"}]}',
        '{"identities": [{"name": "a b"}]}',
        '{"identities": [{"name": "a", "certificates": ["x"]}]}',
    ],
)
def test_a_file_that_is_wrong(path: Path, text: str) -> None:
    """A file that is not as it should be is an error, not an empty one."""
    path.write_text(text)
    with pytest.raises(SessionManagementError, match="identities"):
        Identities(path)


@pytest.mark.parametrize("harm", [lambda path: path.write_text("{"), lambda path: (path.unlink(), path.mkdir())])
def test_a_file_that_becomes_wrong(
    identities: Identities, path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], object]
) -> None:
    """Nobody is let in by what was in it, and nobody is told where it is; the log says that once. Then it goes on."""
    token = identities.create_token("alice")
    identity = who(identities, f"Bearer {token}")
    assert identity is not None
    good = path.read_text()
    harm(path)
    for header in (f"Bearer {token}", "Bearer wrong", None, f"Bearer {token}"):
        with pytest.raises(SessionManagementError, match="its log says why") as caught:
            who(identities, header)
        assert str(path) not in str(caught.value)
    assert not identities.still(identity)
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(path) in line
    if path.is_dir():
        path.rmdir()
    path.write_text(good)
    assert identities.still(identity)
    assert named(who(identities, f"Bearer {token}")) == "alice"


def test_administrators(identities: Identities) -> None:
    """Who is one is so with all secrets; a new secret changes nothing of that unless it is said."""
    token = identities.create_token("alice", admin=True)

    def is_admin() -> bool:
        found = who(identities, f"Bearer {token}")
        return found is not None and found.admin

    found = [is_admin()]
    for admin in (None, False, None, True):
        identities.create_token("alice", admin=admin)
        found.append(is_admin())
    assert found == [True, True, False, False, True]


def test_commands_at_once(identities: Identities, path: Path) -> None:
    """What several programs add at the same time is all there."""

    async def add() -> None:
        others = [Identities(path) for _ in range(8)]
        await asyncio.gather(*(asyncio.to_thread(one.create_token, f"n{i}") for i, one in enumerate(others)))

    asyncio.run(add())
    assert sorted(entry.name for entry in identities.entries()) == [f"n{number}" for number in range(8)]
    assert len(json.loads(path.read_text())["identities"]) == 8


def test_looking_is_bounded(path: Path) -> None:
    """A change is noticed within a second or so, without the file being read for each request."""
    identities = Identities(path)
    token = Identities(path).create_token("alice")
    identities._looked = time.monotonic() - 2 * module.LOOK  # noqa: SLF001 - time passes
    assert named(who(identities, f"Bearer {token}")) == "alice"


def test_anybody() -> None:
    """Without authentication everybody is one identity, and no administrator."""
    anybody = Anybody()
    found = asyncio.run(anybody.identify(Credentials("Bearer nonsense")))
    assert found == Identity("anybody")
    assert found is not None
    assert anybody.still(found)
