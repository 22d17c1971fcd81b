"""What every case is given: a site, workflows that are closed after it, a directory; and the record of the results."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wfl import WflError, Workflow
from wfl.testing.conformance import ours, results, servers
from wfl.testing.conformance.programs import Program, hear_signals
from wfl.testing.conformance.site import EVERY, load

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from wfl.testing.conformance.site import Site

HANGING = 240.0
"""Seconds after which a case is broken off, where pytest-timeout is not there to do it."""

_facts: dict[str, Any] = {}
"""By name of the site: its backend, opened once, or what went wrong."""
_recorded = results.Record()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the suite runs, and where results go."""
    group = parser.getgroup("wfl", "conformance suite of wfl")
    group.addoption("--wfl-context", metavar="MODULE:NAME", help="a Site, or what makes a Context; default: wfl's own")
    group.addoption("--wfl-sites", metavar="NAME,NAME", help="of wfl's own sites those with these names; default: all")
    group.addoption("--wfl-results", metavar="DIR", help="where NAME.json is written (default build/conformance)")


def pytest_configure(config: pytest.Config) -> None:
    """Make the suite's mark known; a site that cannot be loaded is said once, before anything is run."""
    given: str | None = config.getoption("--wfl-context", default=None)
    if given:
        load(given)
    else:
        ours.sites(config.getoption("--wfl-sites", default=None))
    hear_signals()
    config.addinivalue_line("markers", "needs(*what): capabilities, traits, fields, commands that the case needs")


def _chosen(config: pytest.Config, file: str) -> list[Site]:
    """The sites at which the cases of a file are run."""
    given: str | None = config.getoption("--wfl-context", default=None)
    sites = [load(given)] if given else ours.sites(config.getoption("--wfl-sites", default=None))
    return [site for site in sites if site.runs(file)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file that none of the sites runs is left out."""
    file = collection_path.stem
    return True if file.startswith("test_") and not _chosen(config, file) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case once per site."""
    if "site" not in metafunc.fixturenames:
        return
    chosen = _chosen(metafunc.config, metafunc.module.__name__.rpartition(".")[2])
    metafunc.parametrize("site", chosen, indirect=True, ids=[site.name for site in chosen])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where starting a job takes long, a verb of the chain is tried on two kinds of Job in seven, others on others.

    What a verb does to which kind does not depend on the system. WFL_EVERY=1 has all of them tried everywhere.
    """
    if EVERY:
        return
    spared = [item for item in items if _is_spared(item)]
    if spared:
        config.hook.pytest_deselected(items=spared)
        items[:] = [item for item in items if item not in set(spared)]


def _is_spared(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    site: Any = item.callspec.params.get("site")
    if "kind" not in item.callspec.indices or site is None or site.latency == 1:
        return False
    return (sum(map(ord, item.originalname)) + item.callspec.indices["kind"]) % 7 not in (0, 3)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how each case ended."""
    report = yield
    if isinstance(item, pytest.Function) and "site" in item.fixturenames:
        chosen: Any = item.callspec.params["site"]
        _recorded.add(chosen, item, report, call.excinfo)
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write what was run, one file per site, and what servers said if something failed."""
    default = session.config.invocation_params.dir / "build" / "conformance"
    place = Path(session.config.getoption("--wfl-results", default=None) or default)
    _recorded.write(place)
    servers.stop(keep=place if exitstatus else None)


@pytest.fixture(autouse=True)
def _no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """A case that hangs is broken off and named."""
    if request.config.pluginmanager.hasplugin("timeout") or "site" not in request.fixturenames:
        yield
        return
    limit = request.getfixturevalue("site").seconds(HANGING)

    def hangs(_: int, __: object) -> None:
        pytest.fail(f"this case hangs: not over after {limit:g} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Site:
    """The place where jobs run; a case that does not apply there is skipped with the reason."""
    site: Site = request.param
    function, file = request.node.originalname, request.node.module.__name__.rpartition(".")[2]
    reason = site.inapplicable.get(function) or site.inapplicable.get(file)
    if reason is None:
        needs = [need for mark in request.node.iter_markers("needs") for need in mark.args]
        backend = _backend(site)
        reason = next((lack for need in needs if (lack := site.lacks(need, backend))), None)
    if reason is not None:
        pytest.skip(f"{results.NOT_APPLICABLE}{reason}")
    return site


def _backend(site: Site) -> Any:
    """What the site's backend says of itself."""
    if site.name not in _facts:
        try:
            with Workflow(site.open(), raise_errors=True) as flow:
                assert flow.session is not None
                _facts[site.name] = flow.session.backend
        except WflError as error:
            _facts[site.name] = error
    found = _facts[site.name]
    if isinstance(found, WflError):
        words = f"{site.name} cannot be used here: {found}"
        if os.environ.get("WFL_REQUIRE_ALL") == "1":
            pytest.fail(words)
        pytest.skip(words)
    return found


@pytest.fixture(scope="module")
def _counted() -> Iterator[dict[str, tuple[Site, Mapping[str, int]]]]:
    """What the sites' systems held before the first case of one file, and no more after its last.

    Not case by case: a system takes seconds to remove what has ended, and the next case need not wait for that.
    """
    counted: dict[str, tuple[Site, Mapping[str, int]]] = {}
    yield counted
    for site, before in counted.values():
        _check_count(site, before)


@pytest.fixture(autouse=True)
def _leaves_nothing(
    request: pytest.FixtureRequest, _counted: dict[str, tuple[Site, Mapping[str, int]]]
) -> Iterator[None]:
    """What the cases have started in the system is gone after them; so are sessions whose names return, after each."""
    site: Site | None = getattr(getattr(request.node, "callspec", None), "params", {}).get("site")
    if site is None or site.count is None:
        yield
        return
    request.getfixturevalue("site")  # whether it is there at all
    if site.name not in _counted:
        _counted[site.name] = (site, site.count())
    yield
    if site.clean is not None:
        for name in getattr(request.module, "SESSIONS", ()):
            site.clean(name)


def _check_count(site: Site, before: Mapping[str, int]) -> None:
    assert site.count is not None
    end = time.monotonic() + site.seconds(10)  # a helper of a killed program may still be at it
    while _more(after := site.count(), before) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _more(after, before), f"left in the system by the cases of this file at {site.name}"


def _more(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """What there is more of; there is less where the cases before have killed what ended meanwhile."""
    return {kind: number - before[kind] for kind, number in after.items() if number > before[kind]}


@pytest.fixture
def make_flow(site: Site) -> Iterator[Callable[..., Workflow]]:
    """Opens workflows with given settings of the context; all are ended and closed after the case."""
    flows: list[Workflow] = []

    def make(*, raise_errors: bool = False, **settings: Any) -> Workflow:
        flows.append(Workflow(site.open(**settings), raise_errors=raise_errors))
        return flows[-1]

    yield make
    for flow in flows:
        if flow.session is not None and not flow.session.closed:
            flow.kill_all()
        flow.close()


@pytest.fixture
def flow(make_flow: Callable[..., Workflow]) -> Workflow:
    """An open workflow."""
    made = make_flow()
    made.raise_for_error()
    return made


@pytest.fixture(scope="module")
def _opened(_counted: object) -> Iterator[dict[str, Workflow]]:
    """Workflows that the cases of one file have in common; closed before the count."""
    flows: dict[str, Workflow] = {}
    yield flows
    for flow in flows.values():
        flow.kill_all().close()


@pytest.fixture
def common(site: Site, _opened: dict[str, Workflow]) -> Workflow:
    """A workflow for cases that end or kill all that they start and look at nothing else; opening one takes time."""
    if site.name not in _opened:
        _opened[site.name] = Workflow(site.open()).raise_for_error()
    return _opened[site.name]


@pytest.fixture
def shared(site: Site) -> Iterator[Path]:
    """An empty directory that jobs see under the same path; for cases that need Trait.SHARED."""
    assert site.shared is not None, "mark the case with needs(Trait.SHARED)"
    directory = Path(tempfile.mkdtemp(prefix="wfl-conformance-", dir=site.shared))
    directory.chmod(0o777)  # jobs may be another user's
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def program(site: Site, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs of their own, in which `open_context(**settings)` makes this site's contexts."""
    started: list[Program] = []

    def start(source: str, *arguments: object) -> Program:
        assert site.program is not None, "mark the case with needs(Trait.PROGRAMS)"
        started.append(Program(site, source, tmp_path / f"program-{len(started)}.py", arguments))
        return started[-1]

    yield start
    for one in started:
        one.clean()
