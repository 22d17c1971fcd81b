"""What a host's name means by the ssh command's configuration. Nothing is contacted."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from wfl.contexts.ssh.login import Book, Login, logins
from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    Find = Callable[..., Login]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home with a directory for ssh, and a user called ann."""
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "ann")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


@pytest.fixture
def find(home: Path) -> Find:
    """Write a configuration; what a name means by it."""

    def find(name: str, *lines: str, key: str | None = None, known_hosts: str | None = None) -> Login:
        (home / ".ssh/config").write_text("\n".join([*lines, ""]))
        return Book("~/.ssh/config").login(name, key=key, known_hosts=known_hosts)

    return find


def way(login: Login) -> list[str]:
    """The places that are gone through, and the last."""
    return [one.place for one in (*login.jumps, login)]


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "user", "host", "port"),
    [
        ("host", "ann", "host", 22),
        ("host.example.com", "ann", "host.example.com", 22),
        ("10.0.0.1:2222", "ann", "10.0.0.1", 2222),
        ("bob@host", "bob", "host", 22),
        ("bob@host:65535", "bob", "host", 65535),
        ("[::1]", "ann", "::1", 22),
        ("[fe80::1%eth0]:2222", "ann", "fe80::1%eth0", 2222),
        ("bob@[2001:db8::1]:1", "bob", "2001:db8::1", 1),
        ("ssh://bob@host:2222", "bob", "host", 2222),
    ],
)
def test_names(name: str, user: str, host: str, port: int) -> None:
    """`[user@]host[:port]`, an address of IPv6 between brackets; without a user it is oneself."""
    login = Book(None).login(name, key=None, known_hosts=None)
    assert (login.name, login.user, login.host, login.port) == (name, user, host, port)
    assert login.place == f"{user}@{host}:{port}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "::1",
        "2001:db8::1",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "@host",
        "a@b@c",
        "[::1",
        "a b@c",
    ],
)
def test_what_is_no_name(name: str) -> None:
    """What cannot be meant is refused with the forms that can."""
    with pytest.raises(InvalidArgumentError, match=r"^host .*(expected|port)"):
        Book(None).login(name, key=None, known_hosts=None)


@pytest.mark.parametrize(
    "name",
    [
        "x;touch${IFS}pwned;",
        "a`id`",
        "a$b",
        "a'",
        'a"',
        "a\\",
        "a&b",
        "<a",
        "a|b",
        "a(b",
        "a{b",
        "-a",
        "a\x01b",
        "-u@h",
        "u;v@h",
        "u`id`@h",
        "$(id)@h",
        "u'@h",
        "u&v@h",
        "u\\@h",
    ],
)
def test_names_that_a_shell_would_understand(find: Find, name: str) -> None:
    """What ssh refuses in names of hosts and users is refused, as a ProxyCommand would have it."""
    with pytest.raises(InvalidArgumentError, match="ssh refuses"):
        find(name, "ProxyCommand nc %h %r")


def test_names_of_users_that_ssh_takes(find: Find) -> None:
    """Those of machines and of domains have characters that hosts' do not."""
    assert find("u$x@h").user == "u$x"
    assert find("DOM\\ann@h").user == "DOM\\ann"
    with pytest.raises(InvalidArgumentError, match="ssh refuses"):
        find("a", "Host a", "ProxyJump u`id`@j")


def test_a_name_is_no_configuration(find: Find) -> None:
    """What stands in a name is no line of the file."""
    with pytest.raises(InvalidArgumentError, match=r"^host 'bob\\nPort 1@host'"):
        find("bob\nPort 1@host")


def test_several_names_in_order(home: Path) -> None:
    """Each name has its own login, as they were given."""
    (home / "config").write_text("Host a\nPort 1\nHost b\nPort 2\n")
    found = logins(("b", "a"), str(home / "config"), key=None, known_hosts=None)
    assert [(login.name, login.port) for login in found] == [("b", 2), ("a", 1)]


def test_by_hand(home: Path) -> None:
    """How a person logs in to the same place is told, with the same file."""
    other = home / "other"
    other.write_text("")
    told = {
        (name, config): Book(config).login(name, key=None, known_hosts=None).by_hand
        for name, config in [
            ("host", "~/.ssh/config"),
            ("host", None),
            ("bob@host:1", "~/.ssh/config"),
            ("host", str(other)),
        ]
    }
    assert list(told.values()) == ["ssh host", "ssh host", "ssh ssh://bob@host:1", f"ssh -F {other} host"]


def test_told_to_another_process(find: Find) -> None:
    """A login survives JSON: a helper process logs in the same way."""
    login = find("a", "Host a", "ProxyJump b,c", "IdentityFile ~/k", "Host c", "ProxyCommand x %h")
    told = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(login)), type=Login)
    assert told == login
    assert hash(told) == hash(login)


# --- the file ---------------------------------------------------------------------------------------------


def test_no_file(home: Path) -> None:
    """Without a file nothing is read, and one that is not there says nothing."""
    (home / ".ssh/config").write_text("Host *\nUser bob\nPort 1\n")
    for config in (None, str(home / "none")):
        login = Book(config).login("host", key=None, known_hosts=None)
        assert (login.user, login.port, login.keys, login.jumps, login.command) == ("ann", 22, (), (), None)


@pytest.mark.parametrize(
    ("name", "port"), [("web1", 1), ("web22", 3), ("web.x", 2), ("db", 3), ("other", 3), ("WEB1", 3), ("webserver", 3)]
)
def test_patterns(find: Find, name: str, port: int) -> None:
    """Hosts are chosen by `*`, `?` and `!`, and of several that match the first that says something counts."""
    login = find(
        name, "Host web? !web2", " Port 1", "Host *.x !*.y", "\tport=2", "Host *", "PORT 3", "Host web1", "Port 4"
    )
    assert login.port == port


def test_words_of_the_file(find: Find) -> None:
    """Keywords are of any case, values stand after a space or `=`, and between quotes; comments say nothing."""
    login = find("a", "# Port 5", "Host a", "  hostname = b.example", 'USER "bob"', "", "  # User eve", "Port=7")
    assert login.place == "bob@b.example:7"


def test_comments_behind_values(find: Find, home: Path) -> None:
    """They begin with a word; in a command they are the shell's. What is between quotes is one word."""
    lines = ["Host a # b", "Port 2222 # x", "IdentitiesOnly yes # x", "IdentityFile ~/k # mine", "User bob#1"]
    lines += ["HostName 'x' #y", 'UserKnownHostsFile /one "/t w o" # x', "GlobalKnownHostsFile NONE"]
    login = find("a", *lines, "ProxyCommand nc # x")
    assert (login.place, login.only_these_keys, login.keys) == ("bob#1@x:2222", True, (f"{home}/k",))
    assert (login.known_hosts, login.command) == (("/one", "/t w o"), "nc # x")
    assert find("b", *lines).port == 22
    assert find("b", "Match all # x", "Port 5").port == 5
    assert way(find("a", "Host a", "ProxyJump j # x")) == ["ann@j:22", "ann@a:22"]
    (home / "other").write_text("Port 6\n")
    assert find("a", "Include ~/other # x").port == 6
    assert find("a", "LocalCommand echo it's", "Port 7").port == 7


def test_revoked_keys(find: Find, home: Path) -> None:
    """A list of keys that no host may have, or none."""
    assert find("a", "RevokedHostKeys ~/old-%h # x").revoked == f"{home}/old-a"
    assert find("a", "RevokedHostKeys none", "RevokedHostKeys /x").revoked is None


def test_what_was_given_comes_first(find: Find) -> None:
    """User and port of the name are stronger than those of the file, also in what is made of them."""
    lines = ["Host a", "User bob", "Port 1", "HostName %h.example", "ProxyCommand nc -u %r %h %p"]
    assert find("eve@a:2", *lines).place == "eve@a.example:2"
    assert find("eve@a:2", *lines).command == "nc -u eve a.example 2"
    assert find("a", *lines).command == "nc -u bob a.example 1"


def test_keys(find: Find, home: Path) -> None:
    """All keys in the order of the file, with home and tokens; a given one stands alone."""
    lines = ["Host a", "IdentityFile ~/one", "IdentityFile %d/two-%u-%r-%h", "User bob", "HostName h"]
    assert find("a", *lines).keys == (f"{home}/one", f"{home}/two-ann-bob-h")
    assert not find("a", *lines).only_these_keys
    assert find("a", *lines, "IdentitiesOnly yes").only_these_keys
    assert not find("a", *lines, "IdentitiesOnly no").only_these_keys
    given = find("a", *lines, "ProxyJump j", key="~/mine")
    assert (given.keys, given.only_these_keys) == ((f"{home}/mine",), True)
    assert given.jumps[0].keys == (f"{home}/mine",)


def test_certificates(find: Find, home: Path) -> None:
    """A certificate in a file of its own."""
    assert find("a", "Host a", "CertificateFile ~/.ssh/a-cert.pub").certificates == (f"{home}/.ssh/a-cert.pub",)
    assert find("a", "Host a", "User bob", "CertificateFile %d/%r-%h").certificates == (f"{home}/bob-a",)
    assert find("a").certificates == ()


@pytest.mark.parametrize(
    ("said", "agent"),
    [
        ("none", "none"),
        ("SSH_AUTH_SOCK", None),
        ("~/agent", "HOME/agent"),
        ("%d/agent-%r", "HOME/agent-ann"),
        ("/run/agent", "/run/agent"),
        ("$MY_AGENT", "/run/mine"),
        ("${MY_AGENT}", "/run/mine"),
        ("$NO_AGENT", "none"),
    ],
)
def test_agents(find: Find, home: Path, monkeypatch: pytest.MonkeyPatch, said: str, agent: str | None) -> None:
    """The agent that the file names: a socket, a variable that has one, the usual one, or none at all."""
    monkeypatch.setenv("MY_AGENT", "/run/mine")
    assert find("a", "Host a", f"IdentityAgent {said}").agent == (agent and agent.replace("HOME", str(home)))


def test_known_hosts(find: Find, home: Path) -> None:
    """Files of hosts' keys: the usual ones, those of the file, or the given one alone; and another name to look for."""
    assert find("a").known_hosts[:2] == (f"{home}/.ssh/known_hosts", f"{home}/.ssh/known_hosts2")
    lines = ["Host a", "UserKnownHostsFile ~/one /two", "GlobalKnownHostsFile /three", "HostKeyAlias other"]
    login = find("a", *lines)
    assert (login.known_hosts, login.known_as) == ((f"{home}/one", "/two", "/three"), "other")
    assert find("a", *lines, "ProxyJump b", known_hosts="~/mine").known_hosts == (f"{home}/mine",)
    assert find("a", *lines, "ProxyJump b", known_hosts="~/mine").jumps[0].known_hosts == (f"{home}/mine",)
    assert find("a", "UserKnownHostsFile %d/%h", "GlobalKnownHostsFile none").known_hosts[0] == f"{home}/a"


def test_match(find: Find) -> None:
    """Blocks by what is known until then: the host's name as it was given, or as it is now, and users."""
    lines = [
        "Host a",
        "HostName a.example",
        "Match host a.example user bob",
        "Port 1",
        "Match originalhost a",
        "Port 2",
    ]
    assert find("bob@a", *lines).port == 1
    assert find("a", *lines).port == 2
    assert find("b", *lines, "Match all", "Port 3").port == 3
    assert find("b", *lines, "Match localuser ann !user bob", "Port 4").port == 4
    assert find("bob@b", *lines, "Match localuser ann !user bob", "Port 4").port == 22


def test_match_by_a_command(find: Find) -> None:
    """A command may say whether a block counts; it is not given what this program reads."""
    assert find("a", "Match exec 'test %h = a'", "Port 4").port == 4
    assert find("a", "Match exec 'test %h = b'", "Port 4").port == 22
    assert find("a", "Match !exec 'test %h = b'", "Port 4").port == 4
    assert find("a", "Match exec 'test /dev/stdin -ef /dev/null'", "Port 4").port == 4


@pytest.mark.parametrize(
    "word", ["canonical", "tagged x", "localnetwork 10.0.0.0/8", "version *", "!tagged x", "nonsense x"]
)
def test_match_by_what_is_not_known(find: Find, word: str) -> None:
    """A block whose condition cannot be told does not count, even turned round."""
    assert find("a", f"Match {word}", "Port 4", "Host a", "Port 5").port == 5
    assert find("a", f"Match host a {word}", "Port 4", "Host a", "Port 5").port == 5


def test_match_at_the_end(find: Find) -> None:
    """Final blocks count after all others, once, by what those have said."""
    lines = ["Match final host a.example", "Port 4", "IdentityFile /final", "Host a", "IdentityFile /a"]
    assert find("a", *lines, "HostName a.example").port == 4
    assert find("a", *lines, "HostName a.example").keys == ("/a", "/final")
    assert find("a", *lines).port == 22


# --- files in it ------------------------------------------------------------------------------------------


def test_included_files(find: Find, home: Path) -> None:
    """Files are taken in where they are named, by patterns, from ~/.ssh on; those that are not there are none."""
    (home / ".ssh/conf.d").mkdir()
    for name, text in {
        "1.conf": "Host a\nPort 1\n",
        "2.conf": "Host a b\nPort 2\n",
        "x.off": "Host *\nPort 9\n",
    }.items():
        (home / ".ssh/conf.d" / name).write_text(text)
    (home / "elsewhere").write_text("Host c\nPort 3\n")
    lines = ["Include conf.d/*.conf no-such", "include ~/elsewhere", "Host *", "Port 4"]
    assert [find(name, *lines).port for name in "abcd"] == [1, 2, 3, 4]
    assert find("c", f'Include="{home}/elsewhere"').port == 3


def test_what_comes_after_an_included_file(find: Find, home: Path) -> None:
    """A file that is taken in does not change for which hosts the lines after it are."""
    (home / ".ssh/inner").write_text("Host other\nUser eve\n")
    assert find("a", "Include inner", "User bob").user == "bob"
    lines = ["Host a", "Include inner", "User bob", "Host b", "User carol"]
    assert [find(name, *lines).user for name in "abc"] == ["bob", "carol", "ann"]
    assert find("a", "Match originalhost a", "Include inner", "User bob").user == "bob"


def test_a_file_that_is_included_for_one_host(find: Find, home: Path) -> None:
    """Lines of a file that is taken in for some hosts alone are for these."""
    (home / ".ssh/inner").write_text("Port 7\n")
    lines = ["Host a", "Include inner", "Host *", "Port 8"]
    assert [find(name, *lines).port for name in "ab"] == [7, 8]


def test_a_host_in_a_file_that_is_included_for_others(find: Find, home: Path) -> None:
    """Whatever a file says of its hosts, it counts only where the file itself does."""
    (home / ".ssh/inner").write_text("Host *\nPort 7\nMatch all\nUser bob\nMatch exec 'exit 0'\nHostName x\n")
    lines = ["Host a", "Include inner", "Host *", "Port 8"]
    assert [find(name, *lines).place for name in "ab"] == ["bob@x:7", "ann@b:8"]


def test_a_file_in_a_file_for_one_host(find: Find, home: Path) -> None:
    """Nor are those for everybody that one of them takes in before."""
    (home / ".ssh/inner").write_text("Include innermost\nPort 7\n")
    (home / ".ssh/innermost").write_text("User bob\n")
    lines = ["Host a", "Include inner", "Host *", "Port 8"]
    assert [find(name, *lines).place for name in "ab"] == ["bob@a:7", "ann@b:8"]


@pytest.mark.timeout(30)
def test_files_that_include_one_another(find: Find, home: Path) -> None:
    """A file that takes itself in is no trap."""
    (home / ".ssh/inner").write_text("Include inner\nHost a\nPort 7\n")
    assert find("a", "Include inner").port == 7


# --- ways -------------------------------------------------------------------------------------------------


def test_jumps(find: Find) -> None:
    """Hosts on the way, in order, each by its own name, user and port, and by what the file says of it."""
    lines = ["Host a", "HostName a.in", "ProxyJump bob@j1:1,j2", "Host j2", "HostName j2.out", "User carol", "Port 2"]
    assert way(find("a", *lines)) == ["bob@j1:1", "carol@j2.out:2", "ann@a.in:22"]
    assert way(find("a", "Host a", "ProxyJump [::1]:5")) == ["ann@::1:5", "ann@a:22"]
    assert way(find("a", "Host a", "ProxyJump ssh://bob@j:5")) == ["bob@j:5", "ann@a:22"]
    assert way(find("a", "Host a", "ProxyJump none", "Host *", "ProxyJump j")) == ["ann@a:22"]
    assert find("a", *lines).command is None


def test_jumps_of_jumps(find: Find) -> None:
    """A host on the way may have its own way; of several, the first alone, as the others are reached through it."""
    lines = ["Host a", "ProxyJump b", "Host b", "ProxyJump c", "Host c", "ProxyCommand nc %h %p"]
    login = find("a", *lines)
    assert way(login) == ["ann@c:22", "ann@b:22", "ann@a:22"]
    assert [hop.command for hop in login.jumps] == ["nc c 22", None]
    assert {hop.jumps for hop in login.jumps} == {()}
    assert way(find("a", "Host a", "ProxyJump b,c", "Host c", "ProxyJump b")) == ["ann@b:22", "ann@c:22", "ann@a:22"]


@pytest.mark.parametrize("lines", [["ProxyJump a"], ["Host a", "ProxyJump b", "Host b", "ProxyJump a"]])
def test_jumps_in_a_circle(find: Find, lines: list[str]) -> None:
    """A way that leads back to itself is refused, as ssh does."""
    with pytest.raises(InvalidArgumentError, match="its ProxyJump leads in a circle"):
        find("a", *lines)


def test_commands(find: Find) -> None:
    """A command that leads to the host, with what it has to know; or none."""
    assert find("a", "Host a", "ProxyCommand ssh -W %h:%p ~/x").command is not None
    assert find("a", "Host a", "Port 5", "ProxyCommand ssh -W %h:%p j").command == "ssh -W a:5 j"
    assert find("a", "Host a", "ProxyCommand none", "Host *", "ProxyCommand nc %h").command is None


def test_the_first_way_counts(find: Find) -> None:
    """Of a command and a jump, also where the command is none; that there is no jump says nothing of a command."""
    command, jump = "ProxyCommand nc %h", "ProxyJump j"
    both = [find("a", f"Host a\n{first}\nHost a\n{second}") for first, second in [(command, jump), (jump, command)]]
    assert [(login.command, len(login.jumps)) for login in both] == [("nc a", 0), (None, 1)]
    none = find("a", "Host a", "ProxyCommand none", "Host a", jump)
    assert (none.command, none.jumps) == (None, ())
    assert find("a", "Host a", "ProxyJump none", "Host *", command).command == "nc a"


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["Match", "Port 1"],
        ["Host 'a", "Port 1"],
        ["Host a", "Port many"],
        ["Host a", "Port 0"],
        ["Host a", "Port 70000"],
        ["Host a", "ProxyJump b c"],
        ["JustOneWord"],
    ],
)
def test_what_the_file_cannot_say(find: Find, lines: list[str]) -> None:
    """What cannot be understood is refused with the name that was looked for."""
    with pytest.raises(InvalidArgumentError, match=r"^host '(a|b c)'"):
        find("a", *lines)


def test_a_file_that_cannot_be_read(home: Path) -> None:
    """A file that is there and cannot be read is named, and not passed over."""
    with pytest.raises(InvalidArgumentError, match=f"^{home}: Is a directory$"):
        Book(str(home))
    (home / ".ssh/config").write_text(f"Include {home}\n")
    with pytest.raises(InvalidArgumentError, match=f"^{home}: Is a directory$"):
        Book("~/.ssh/config")


def test_a_file_that_others_can_write_to(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the usual one nor one that another takes in: there are commands in it. Of one that is named, its user
    knows.
    """
    usual, inner = home / ".ssh/config", home / ".ssh/inner"
    usual.write_text("Include inner\n")
    inner.write_text("Port 7\n")
    for path in (usual, inner):
        path.chmod(0o646)
        with pytest.raises(InvalidArgumentError, match=f"^{path}: others can write to it"):
            Book("~/.ssh/config")
        path.chmod(0o644)
    usual.chmod(0o664)
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name="staff", gr_mem=[]))
    with pytest.raises(InvalidArgumentError, match=f"^{usual}: others can write to it"):
        Book("~/.ssh/config")
    name = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name=name, gr_mem=[name]))
    assert Book("~/.ssh/config").login("a", key=None, known_hosts=None).port == 7
    other = home / "other"
    other.write_text("Port 8\n")
    other.chmod(0o666)
    assert Book(str(other)).login("a", key=None, known_hosts=None).port == 8


def test_the_machines_own_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the user's usual one, and not after another that is named instead."""
    seen: list[str] = []

    def read(path: str, *_: object, **__: object) -> list[Any]:
        seen.append(path)
        return []

    monkeypatch.setattr("wfl.contexts.ssh.login._lines", read)
    Book("~/.ssh/config")
    Book(str(home / "other"))
    assert seen == [str(home / ".ssh/config"), "/etc/ssh/ssh_config", str(home / "other")]


def test_any_bytes(home: Path) -> None:
    """A comment in another encoding is no reason to refuse a file."""
    (home / ".ssh/config").write_bytes(b"# \xff\xfe\nHost a\nPort 9\n")
    found: Any = Book("~/.ssh/config").login("a", key=None, known_hosts=None)
    assert found.port == 9
