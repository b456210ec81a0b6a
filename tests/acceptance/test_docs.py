"""What the pages tell people to type works, in order, page by page, in a fresh copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.testing.postgresql import PostgresServer, embedded_binaries

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SYSTEM_PATHS = re.compile(r"(?<![\w.])/(?=(?:opt|etc)/)")
"""Places of an installed system; they stand below the temporary directory here."""
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "build", "dist")
LIMIT_S = 800
PRELUDE = """
set -eu
shopt -s expand_aliases
trap 'kill $(jobs -p) 2>/dev/null && wait' EXIT
set -x
"""
CURL = """#!{python}
import sys, time, urllib.error, urllib.request
arguments, options = iter(sys.argv[1:]), {{}}
headers, address, tries = {{}}, "", 1
for argument in arguments:
    if argument == "-H":
        header = next(arguments)
        name, _, value = (open(header[1:]).read().strip() if header.startswith("@") else header).partition(": ")
        headers[name] = value
    elif argument == "--retry":
        tries += int(next(arguments))
    elif argument in ("-X", "-d", "-o", "--retry-delay"):
        options[argument] = next(arguments)
    elif not argument.startswith("-"):
        address = argument
data = options["-d"].encode() if "-d" in options else None
data = sys.stdin.buffer.read() if data == b"@-" else data
request = urllib.request.Request(address, data, headers, method=options.get("-X"))
for left in reversed(range(tries)):
    try:
        body = urllib.request.urlopen(request).read()
        break
    except urllib.error.HTTPError as error:
        sys.exit(f"curl: {{error}}")
    except urllib.error.URLError as error:
        if not left:
            sys.exit(f"curl: {{error}}")
        time.sleep(float(options.get("--retry-delay", 1)))
(open(options["-o"], "wb") if "-o" in options else sys.stdout.buffer).write(body)
"""
"""As much of curl as the pages use, for machines without it."""


def console_commands(page: Path) -> list[str]:
    """The commands of a page's `console` blocks: from each `$ ` to the first line that does not end in a backslash."""
    commands: list[str] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        commands += re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE)
    return commands


def script_of(commands: list[str]) -> str:
    """The commands as one script that stops at the first that fails; one that begins with `!` has to fail."""
    lines = [
        f"if {command.removeprefix('! ')}; then exit 1; fi" if command.startswith("! ") else command for command in commands
    ]
    return PRELUDE + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    binaries = embedded_binaries()
    assert binaries is not None
    with PostgresServer(binaries) as server:
        yield server


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh copy of the sources, with the places of an installed system beside it."""
    (tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    (tmp_path / "opt").mkdir()
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=LEFT_OUT))


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Stands in for what a test machine lacks: a service manager, which is only told things, and perhaps curl."""
    directory = tmp_path / "tools"
    directory.mkdir()
    stands_in = {"systemctl": "#!/bin/sh\n"}
    if shutil.which("curl") is None:
        stands_in["curl"] = CURL.format(python=sys.executable)
    for name, text in stands_in.items():
        (directory / name).write_text(text)
        (directory / name).chmod(stat.S_IRWXU)
    return directory


@pytest.fixture
def environment(tools: Path, database: PostgresServer) -> dict[str, str]:
    binaries = embedded_binaries()
    assert binaries is not None
    path = [tools, Path(sys.executable).parent, binaries, os.environ["PATH"]]
    return {
        "HOME": str(tools.parent),
        "LANG": "C.UTF-8",
        "PATH": os.pathsep.join(map(str, path)),
        "PGHOST": database.host,
        "PGPORT": str(database.port),
        "PGUSER": database.superuser,
        "PGPASSWORD": database.superuser_password.reveal(),
        **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
    }


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("page", [page for page in PAGES if console_commands(page)], ids=lambda page: page.stem)
def test_commands_in_the_pages_work(page: Path, checkout: Path, environment: dict[str, str]) -> None:
    """Every command of the page succeeds (or fails, where it begins with `!`), typed one after the other."""
    script = SYSTEM_PATHS.sub(f"{checkout.parent}/", script_of(console_commands(page)))
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        output, _ = shell.communicate()
    logs = "\n".join(log.read_text() for log in checkout.glob("*.log"))
    assert shell.returncode == 0, f"{output[-6000:]}\n{logs[-3000:]}"


def named_tests(text: str) -> list[tuple[str, str]]:
    """The tests that a page names: file and function, the latter empty where a file is meant; one without a file is of the last named.

    Three ways of writing are known: `tests/a/test_b.py::test_c`, `::test_c`, `test_c`.
    """
    named, file = [], ""
    for path, colons, name in re.findall(r"`(tests/[\w/.-]+\.py)?(::)?(\w+)?`", text):
        file = path or file
        if path or colons or name.startswith("test_"):
            named.append((file, name))
    return named


def is_there(path: str, name: str) -> bool:
    """Whether there is a test of just that name, as a function or a method, or such a file."""
    if not path or not (ROOT / path).is_file():
        return False
    return not name or re.search(rf"^ *(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE) is not None


def test_pages_name_tests_that_exist() -> None:
    """Every test that a page names is there, by just that name."""
    broken = [
        f"{page.relative_to(ROOT)}: {path}::{name}"
        for page in PAGES
        for path, name in named_tests(page.read_text())
        if not is_there(path, name)
    ]
    assert broken == []


def test_names_of_tests_are_all_found() -> None:
    """Short names are of the file named last, and part of a name is no name; so no page can name a test that is not there."""
    here = f"tests/acceptance/{Path(__file__).name}"
    text = f"`{here}::test_a` (`::test_b`), `test_c`, `a_test`, `test_d.py`, `tests/e.py`, `::test_f`"
    assert named_tests(text) == [
        *((here, "test_a"), (here, "test_b"), (here, "test_c")),
        *(("tests/e.py", ""), ("tests/e.py", "test_f")),
    ]
    assert is_there(here, "test_names_of_tests_are_all_found")
    assert not is_there(here, "test_names_of_tests")
    assert not is_there("", "test_names_of_tests_are_all_found")
    assert not is_there("tests/e.py", "")
    assert "test_what_a_plain_login_cannot_hide" in dict(map(reversed, named_tests((ROOT / "docs/secrets.md").read_text())))


def test_pages_link_to_what_exists() -> None:
    """Every relative link of a page leads to a file of the project."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
