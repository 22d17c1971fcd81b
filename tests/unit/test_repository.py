"""What holds for the repository as a whole: targets, archives, exported names, and who imports whom."""

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ["run", "test", "test-all", "services", "lint", "types", "bench", "docs", "conformance", "binary", "clean"]
SHARED = ("backend", "context", "drmaa2", "errors", "extras", "placeholders", "program", "staging", "threads", "timing")
CONTEXTS_MAY_IMPORT = {f"wfl.{name}" for name in SHARED}


def output_of(*command: str, directory: Path = ROOT) -> str:
    """Run a command to its end and return what it prints; a failure shows its error output."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources(folder: str) -> list[Path]:
    """Return the Python files of a folder, without those behind its symbolic links."""
    links = {path for path in (ROOT / folder).rglob("*") if path.is_symlink()}
    files = [file for file in (ROOT / folder).rglob("*.py") if not links & set(file.parents)]
    assert files, folder
    return sorted(files)


def imports_of(file: Path, package: str) -> Iterator[str]:
    """Yield the absolute names that a file of a package imports; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def package_of(file: Path, folder: str, name: str) -> str:
    """Return the package of a file below a folder that is imported by the given name."""
    return ".".join([name, *file.relative_to(ROOT / folder).parent.parts])


def is_within(name: str, modules: set[str]) -> bool:
    """Tell whether a name is one of the modules or stands in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the names in a wheel built from the tree, and in one built from the source archive."""
    out = tmp_path_factory.mktemp("archives")
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    output_of(*build, str(out / "tree"), "--wheel", str(ROOT))
    output_of(*build, str(out / "sdist"), str(ROOT))  # makes the source archive, and the wheel from that
    names = {}
    for source in ("tree", "sdist"):
        (wheel,) = (out / source).glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            names[source] = sorted(file.namelist())
    return names


def test_make_alone_lists_the_targets() -> None:
    """`make` without a word prints every target, in order, each with a description of one line."""
    lines = output_of("make", "--no-print-directory").splitlines()
    assert [line.split()[1] for line in lines] == TARGETS
    assert all(line.startswith("make ") and len(line.split()) > 3 for line in lines)


def test_exported_names_are_guarded() -> None:
    """`wfl.__all__` is sorted and is what a star import gives; all else in wfl is private or a module."""
    code = """
import json, types, wfl
star = {}
exec("from wfl import *", star)
public = [n for n, v in vars(wfl).items() if n[0] != "_" and not isinstance(v, types.ModuleType)]
print(json.dumps([wfl.__all__, sorted(star.keys() - {"__builtins__"}), sorted({*public, *wfl.__all__})]))
"""
    exported, star, public = json.loads(output_of(sys.executable, "-c", code))
    assert exported == sorted(exported)
    assert exported == star == public


def test_import_is_light() -> None:
    """`import wfl` loads no third-party module but msgspec, and no context."""
    code = "import sys, json; old = {*sys.modules}; import wfl; print(json.dumps([*({*sys.modules} - old)]))"
    loaded = json.loads(output_of(sys.executable, "-c", code))
    assert "wfl" in loaded
    third_party = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert third_party <= {"wfl", "msgspec", "typing_extensions"}  # msgspec takes that where it is
    assert not [name for name in loaded if name.startswith("wfl.contexts")]


def test_wfl_imports_no_context() -> None:
    """No file of wfl/ imports wfl.contexts; a context is found by name, when a script asks for it."""
    for file in sources("wfl"):
        for name in imports_of(file, package_of(file, "wfl", "wfl")):
            assert not is_within(name, {"wfl.contexts"}), f"{file}: {name}"


def test_contexts_import_little_of_wfl() -> None:
    """contexts/ knows the vocabulary, the errors, the contract and threads; nothing of sessions and jobs."""
    for file in sources("contexts"):
        for name in imports_of(file, package_of(file, "contexts", "wfl.contexts")):
            if is_within(name, {"wfl"}):
                assert is_within(name, CONTEXTS_MAY_IMPORT | {"wfl.contexts"}), f"{file}: {name}"


def test_nothing_imports_the_bare_name_contexts() -> None:
    """The rooms are wfl.contexts; another distribution owns the name `contexts`."""
    packages = {"wfl": "wfl", "contexts": "wfl.contexts", "examples": "", "tests": "tests"}
    for folder, package in packages.items():
        for file in sources(folder):
            for name in imports_of(file, package_of(file, folder, package)):
                assert not is_within(name, {"contexts"}), f"{file}: {name}"


@pytest.mark.parametrize("source", ["tree", "sdist"])
def test_wheel_holds_each_file_once_under_its_name(archives: dict[str, list[str]], source: str) -> None:
    """The wheel has the contexts and the conformance suite inside wfl, and nothing beside wfl."""
    names = archives[source]
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in names} == {"wfl", "wfl_sdk-0.1.0.dist-info"}
    for wanted in (
        "wfl/__init__.py",
        "wfl/py.typed",
        "wfl/contexts/__init__.py",
        "wfl/contexts/process/__init__.py",
        "wfl/testing/conformance/__init__.py",
        "wfl_sdk-0.1.0.dist-info/licenses/LICENSE",
    ):
        assert wanted in names


def test_both_wheels_are_the_same(archives: dict[str, list[str]]) -> None:
    """A wheel made from the source archive has the same files as one made from the tree."""
    assert archives["sdist"] == archives["tree"]
