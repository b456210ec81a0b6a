"""What is built and installed is what the sources say."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GROUP = "broker.engines"
CARRIED = {".py", ".sql", ".typed"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = directory.glob("*.whl")
    return zipfile.ZipFile(path)


def declared_engines(project: dict[str, Any]) -> dict[str, str]:
    return project["project"]["entry-points"][GROUP]


def sources(package: Path) -> set[Path]:
    return {path for path in package.rglob("*") if path.suffix in CARRIED and "__pycache__" not in path.parts}


def test_every_plugin_folder_is_packaged_and_offered(project: dict[str, Any]) -> None:
    """The folders in plugins/, the packages of the wheel and the modules of the entry points are the same set."""
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    packages = {Path(path) for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert {path.name for path in packages if path.parent.name == "plugins"} == folders
    assert {target.partition(":")[0] for target in declared_engines(project).values()} == folders
    assert packages - {Path("plugins") / name for name in folders} == {Path("broker")}


def test_installed_engines_are_the_declared_ones(project: dict[str, Any]) -> None:
    """An entry point that was added since the last installation is noticed: an editable install would not offer it."""
    ours = {
        point.name: point.value
        for point in entry_points(group=GROUP)
        if point.dist is not None and point.dist.name == project["project"]["name"]
    }
    assert ours == declared_engines(project)


def test_wheel_carries_every_source(wheel: zipfile.ZipFile) -> None:
    """Each module, query file and type marker of the packages is in the wheel, and no other package is."""
    expected = {str(path.relative_to(ROOT)) for path in sources(ROOT / "broker")}
    expected |= {str(path.relative_to(ROOT / "plugins")) for path in sources(ROOT / "plugins")}
    carried = {name for name in wheel.namelist() if ".dist-info/" not in name and ".data/" not in name}
    assert {name for name in carried if Path(name).suffix in CARRIED} == expected
    assert {name.partition("/")[0] for name in carried} == {"broker", "broker_postgresql"}


def test_wheel_carries_the_example_configuration(wheel: zipfile.ZipFile) -> None:
    """The commented configuration is installed under the environment's share/broker."""
    assert any(name.endswith(".data/data/share/broker/broker.toml") for name in wheel.namelist())


def test_wheel_names_the_licence(wheel: zipfile.ZipFile) -> None:
    """The licence travels with the package, as its terms ask."""
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_summary_says_database_credential_broker(project: dict[str, Any]) -> None:
    """Broker alone means message broker to most, so the summary and the README's first line say which kind."""
    summary = project["project"]["description"]
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(line for line in lines if line.strip() and not line.startswith("#"))
    assert "database credential broker" in summary
    assert "database credential broker" in first
