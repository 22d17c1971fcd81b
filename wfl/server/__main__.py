"""The commands of the job server: `python -m wfl.server serve`, `token`, `password`, `certificate`, `remove`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from wfl.context import Context
from wfl.errors import InvalidArgumentError, WflError
from wfl.server.app import LEGACY_PATH, create_app
from wfl.server.identities import Anybody, Identities
from wfl.server.limits import ServerLimits
from wfl.server.policy import FIELDS, Policy
from wfl.server.serving import Tls, is_loopback, listen, serve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.server.identities import Guardian

PROGRAM = "python -m wfl.server"
IDENTITIES = "identities.json"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Run one command; its exit status. `program` is what it was called as."""
    options = _parser(program).parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        status: int = options.command(options)
    except WflError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - a command's words
        return 1
    return status


# --- serving ----------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    directory = Path(options.directory).absolute()
    host, port = _address(options.listen)
    tls = _tls(options)
    guardian = _guardian(options, directory)
    _check_exposure(options, host, tls, guardian)
    context = _context(options, directory)
    app = create_app(
        context,
        directory=directory,
        identities=guardian,
        base_path=options.base_path,
        policy=_policy(options),
        limits=_limits(options.limit),
        legacy=options.legacy or options.legacy_get,
        legacy_get=options.legacy_get,
        legacy_path=options.legacy_path,
        open_metrics=options.open_metrics,
        hosts=_hosts(options, host),
        own_directories=options.own_directories,
    )
    if tls is not None:
        tls.context()  # what cannot be used is said before anything is opened
    listener = listen(host, port)
    with listener:
        app.state.server.open()
        words = "https" if tls else "http"
        where = "{}:{}".format(*listener.getsockname()[:2])
        logging.getLogger("wfl.server").info("serving %s at %s://%s%s", context.name, words, where, options.base_path)
        try:
            asyncio.run(serve(app, [listener], tls=tls, grace=options.grace, proxies=options.proxies))
        finally:
            app.state.server.close()
    return 0


def _address(text: str) -> tuple[str, int]:
    form = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*):(\d{1,5})", text)
    if form is None or int(form[2]) > 65535:  # noqa: PLR2004
        raise InvalidArgumentError(f"--listen is {text!r}, expected HOST:PORT, such as 127.0.0.1:8080")
    return form[1] or "127.0.0.1", int(form[2])


def _tls(options: argparse.Namespace) -> Tls | None:
    if options.tls_certificate is None:
        if options.tls_key or options.client_ca or options.require_client_certificate:
            raise InvalidArgumentError("TLS needs --tls-certificate")
        return None
    if options.require_client_certificate and not options.client_ca:
        raise InvalidArgumentError("--require-client-certificate needs --client-ca")
    return Tls(
        certificate=options.tls_certificate,
        key=options.tls_key,
        client_authorities=options.client_ca,
        required=options.require_client_certificate,
    )


def _guardian(options: argparse.Namespace, directory: Path) -> Guardian:
    if options.no_authentication:
        return Anybody()
    identities = Identities(_identities_path(options, directory))
    if identities.empty:
        words = f"{PROGRAM} token create NAME --directory DIR makes one; --no-authentication needs none"
        raise InvalidArgumentError(f"nobody could use this server: {identities.path} has no identity. {words}")
    return identities


def _identities_path(options: argparse.Namespace, directory: Path) -> Path:
    return Path(options.identities) if options.identities else directory / IDENTITIES


def _check_exposure(options: argparse.Namespace, host: str, tls: Tls | None, guardian: Guardian) -> None:
    """An address that others reach needs TLS and identities, or words that say that it is meant."""
    if is_loopback(host):
        return
    if tls is None and not options.insecure_plaintext:
        words = "give --tls-certificate, or --insecure-plaintext where the network itself is safe"
        raise InvalidArgumentError(f"{host} is reached by others, who could read every token: {words}")
    if isinstance(guardian, Anybody) and not options.insecure_anybody:
        words = "leave out --no-authentication, or add --insecure-anybody if that is meant"
        raise InvalidArgumentError(f"{host} is reached by others, and anybody could run anything: {words}")


def _context(options: argparse.Namespace, directory: Path) -> Context:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings: dict[str, Any] = {"store": str(directory / "jobs.db"), "detach": not options.end_jobs}
    return Context.named(options.context, **settings)


def _policy(options: argparse.Namespace) -> Policy:
    extensions: dict[str, list[str] | None] = {}
    for text in options.allow_extension:
        name, mark, pattern = text.partition("=")
        known = extensions.setdefault(name, [] if mark else None)
        if bool(mark) != (known is not None):
            words = "is given with a pattern and without one, which would allow anything"
            raise InvalidArgumentError(f"--allow-extension {name} {words}")
        if known is not None:
            known.append(pattern)
    return Policy(
        commands=options.allow_command or None,
        images=options.allow_image or None,
        environment=options.allow_environment or None,
        fields=(FIELDS | {*options.allow_field}) - {*options.refuse_field},
        extensions=extensions,
        server_paths=options.server_paths,
    )


def _limits(given: Sequence[str]) -> ServerLimits:
    kinds = {one.name: one.type for one in structs.fields(ServerLimits)}
    found: dict[str, Any] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            found[name] = kinds[name](number)
        except (KeyError, ValueError):
            words = f"expected NAME=NUMBER with one of {', '.join(kinds)}"
            raise InvalidArgumentError(f"--limit is {text!r}, {words}") from None
    return ServerLimits(**found)


def _hosts(options: argparse.Namespace, host: str) -> Sequence[str] | None:
    """Without authentication a page of another site must not get here by a name of its own (DNS rebinding)."""
    if options.host_name:
        return list(options.host_name)
    return _LOOPBACK_NAMES if options.no_authentication and is_loopback(host) else None


# --- identities -------------------------------------------------------------------------------------------


def _opened(options: argparse.Namespace) -> Identities:
    return Identities(_identities_path(options, Path(options.directory).absolute()))


def _create_token(options: argparse.Namespace) -> int:
    lifetime = None if options.days is None else timedelta(days=options.days)
    print(_opened(options).create_token(options.name, admin=options.admin, lifetime=lifetime))  # noqa: T201
    return 0


def _list_tokens(options: argparse.Namespace) -> int:
    for entry in _opened(options).entries():
        more = [word for word, is_so in (("admin", entry.admin), ("password", bool(entry.password))) if is_so]
        more += [f"{len(entry.certificates)} certificates"] if entry.certificates else []
        print(" ".join([entry.name, *more]))  # noqa: T201
        for token in entry.tokens:
            end = f", expires {token.expires}" if token.expires else ""
            print(f"  token {token.id}, created {token.created}{end}")  # noqa: T201
    return 0


def _revoke_token(options: argparse.Namespace) -> int:
    count = _opened(options).revoke(options.what)
    print(f"{count} revoked")  # noqa: T201
    return 0


def _set_password(options: argparse.Namespace) -> int:
    identities = _opened(options)
    if options.remove:
        identities.set_password(options.name, None)
        return 0
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise InvalidArgumentError("these were two different passwords")
    else:
        password = sys.stdin.readline().rstrip("\n")
    identities.set_password(options.name, password, admin=options.admin)
    return 0


def _add_certificate(options: argparse.Namespace) -> int:
    try:
        pem = Path(options.file).read_text(encoding="ascii")
    except (OSError, UnicodeError) as error:
        raise InvalidArgumentError(f"{options.file} cannot be read: {error}") from error
    print(_opened(options).add_certificate(options.name, pem, admin=options.admin))  # noqa: T201
    return 0


def _remove_identity(options: argparse.Namespace) -> int:
    _opened(options).remove(options.name)
    return 0


# --- the command line -------------------------------------------------------------------------------------


def _parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description="Offer a context of wfl over HTTP.")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve until it is told to stop"))
    tokens = commands.add_parser("token", help="tokens of identities").add_subparsers(required=True, metavar="WHAT")
    create = _command(tokens, "create", _create_token, "make a token, and show it this once")
    create.add_argument("name")
    create.add_argument("--days", type=float, help="how long it is valid (default: until it is revoked)")
    _add_admin(create)
    _command(tokens, "list", _list_tokens, "show identities, and the ids of their tokens")
    _command(tokens, "revoke", _revoke_token, "take away a token, or all of an identity").add_argument(
        "what", metavar="ID|NAME"
    )
    password = _command(commands, "password", _set_password, "set an identity's password (asked for, or from stdin)")
    password.add_argument("name")
    password.add_argument("--remove", action="store_true", help="take it away")
    _add_admin(password)
    certificate = _command(commands, "certificate", _add_certificate, "let a client's certificate be an identity")
    certificate.add_argument("name")
    certificate.add_argument("file", help="the certificate, in PEM form")
    _add_admin(certificate)
    remove = _command(commands, "remove", _remove_identity, "take away an identity with all its secrets")
    remove.add_argument("name")
    return parser


def _command(commands: Any, name: str, f: Any, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
    parser.set_defaults(command=f)
    _add_places(parser)
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", required=True, help="where the server keeps everything")
    parser.add_argument("--identities", help=f"the file of identities (default: DIRECTORY/{IDENTITIES})")


def _add_admin(parser: argparse.ArgumentParser) -> None:
    about = (
        "whether NAME, with all its secrets, sees and controls the jobs of all (default: as it was; of a new one: no)"
    )
    parser.add_argument("--admin", action=argparse.BooleanOptionalAction, help=about)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_serve)
    _add_places(parser)
    add = parser.add_argument
    add("--context", default="process", help="which, with settings, such as 'docker?image=busybox'")
    add("--end-jobs", action="store_true", help="end all jobs with the server (default: they go on)")
    add("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    add("--base-path", default="", help="what all addresses begin with, such as /wfl")
    add("--tls-certificate", metavar="FILE", help="with the chain, in PEM form")
    add("--tls-key", metavar="FILE")
    add("--client-ca", metavar="FILE", help="who may sign certificates of clients")
    add("--require-client-certificate", action="store_true")
    add("--insecure-plaintext", action="store_true", help="no TLS on an address that others reach")
    add("--no-authentication", action="store_true", help="everybody may do everything")
    add("--insecure-anybody", action="store_true", help="even on an address that others reach")
    add("--host-name", action="append", default=[], help="what the header Host may say (default: anything)")
    add("--proxies", metavar="ADDRESSES", help="reverse proxies whose X-Forwarded-For is believed")
    add("--legacy", action="store_true", help="also speak the protocol of wfl for Go")
    add("--legacy-get", action="store_true", help="with its GETs that change something")
    add("--legacy-path", default=LEGACY_PATH)
    add("--open-metrics", action="store_true", help="/metrics needs no authentication")
    add("--grace", type=float, default=10.0, help="seconds for what is under way when it is told to stop")
    add("--limit", action="append", default=[], metavar="NAME=NUMBER", help="see ServerLimits")
    add("--allow-command", action="append", default=[], metavar="PATTERN", help="only these (default: any)")
    add("--allow-image", action="append", default=[], metavar="PATTERN", help="only these (default: any)")
    add("--allow-environment", action="append", default=[], metavar="PATTERN", help="only these variables")
    add("--allow-field", action="append", default=[], metavar="FIELD", help="one more that may be set")
    add("--refuse-field", action="append", default=[], metavar="FIELD", help="one that may not be set")
    add("--allow-extension", action="append", default=[], metavar="NAME[=PATTERN]", help="one that may be set")
    add("--server-paths", action="store_true", help="templates may name any path of the server")
    add("--own-directories", action=argparse.BooleanOptionalAction, help="each job starts in its own")


if __name__ == "__main__":
    sys.exit(main())
