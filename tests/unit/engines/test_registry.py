"""The registry: plugins found as a stranger's are, and a state with a reason for each that can't be used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.engines.protocol import PROTOCOL_VERSION, Traits
from broker.engines.registry import Claim, Registry
from broker.errors import EngineMissing, InvalidRequest
from broker.testing.engine import MemoryPlugin, MemoryServer

SOUND = """
from broker.engines.protocol import PROTOCOL_VERSION, Fields, Traits

class Engine:
    protocol_version = PROTOCOL_VERSION
    traits = Traits(kind="toy")
    fields = Fields(connection={"colour": {"type": "string"}})
    secret_fields = frozenset({"password"})

    def __init__(self, name, config, origin): ...

    @staticmethod
    def check_config(config): return ()

    @staticmethod
    def shown(config): return {}
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with one engine plugin on the path, as an installer would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = []

    def put(distribution: str, name: str, source: str = SOUND) -> None:
        module = f"toy_{len(modules)}_{tmp_path.name.replace('-', '_')}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[broker.engines]\n{name} = {module}:Engine\n")
        importlib.invalidate_caches()

    yield put
    for module in modules:
        sys.modules.pop(module, None)


def test_stranger_is_found_and_loaded(install: Install) -> None:
    """A plugin of another distribution is found by its entry-point name and the suffix that Vault gives."""
    install("db-credential-broker-toy", "toy")
    registry = Registry.installed()
    assert registry.plugin("toy-database-plugin").traits == Traits(kind="toy")
    assert registry.fields()["toy-database-plugin"].connection == {"colour": {"type": "string"}}


def test_only_the_plugin_asked_for_is_imported(install: Install, tmp_path: Path) -> None:
    """A plugin that nobody uses is not imported, so it can't hurt or slow the others."""
    install("toy-a", "toy")
    install("toy-b", "other", "open('imported', 'w')" + SOUND)
    Registry.installed().plugin("toy-database-plugin")
    assert not any(name.startswith("toy_1") for name in sys.modules)


def test_unknown_name_says_what_is_installed(install: Install) -> None:
    """A connection that names no installed plugin is the caller's mistake, and the answer lists the right names."""
    install("toy-a", "toy")
    with pytest.raises(InvalidRequest, match=r"no plugin 'oracle' is installed; installed: .*toy-database-plugin") as caught:
        Registry.installed().plugin("oracle")
    assert "postgresql-database-plugin" in str(caught.value)


def test_nothing_installed_is_said() -> None:
    """With no plugin at all the answer says none."""
    with pytest.raises(InvalidRequest, match="installed: none"):
        Registry([]).plugin("x-database-plugin")


def test_name_claimed_twice_is_refused(install: Install) -> None:
    """Of two distributions that claim one name neither is loaded, and both are named."""
    install("toy-a", "toy")
    install("toy-b", "toy")
    with pytest.raises(EngineMissing, match="claimed by toy-a and toy-b; uninstall all but one"):
        Registry.installed().plugin("toy-database-plugin")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_to_be_found", "can't be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raise SystemExit('no licence')", "can't be imported: SystemExit: no licence"),
        ("this is no Python", "can't be imported: SyntaxError"),
        ("x = 1", "can't be imported: AttributeError"),
        ("Engine = 1", "it has no protocol_version"),
        (SOUND.replace("= PROTOCOL_VERSION", "= 99"), f"it speaks protocol version 99 and this broker {PROTOCOL_VERSION}"),
        (SOUND.replace('Traits(kind="toy")', '"toy"'), "its traits are no Traits"),
        (SOUND.replace("= Fields(", "= dict("), "its fields are no Fields"),
        (SOUND.replace('frozenset({"password"})', "None"), "its secret_fields are no set"),
        (SOUND.replace("def shown", "def show"), "it lacks shown"),
    ],
)
def test_unsound_plugin_is_a_state_with_its_reason(install: Install, source: str, reason: str) -> None:
    """A plugin that can't be imported or used is named with the reason, and the others go on to work."""
    install("toy-a", "toy", source)
    install("toy-b", "sound")
    registry = Registry.installed()
    with pytest.raises(EngineMissing) as caught:
        registry.plugin("toy-database-plugin")
    assert str(caught.value).startswith("the plugin toy-database-plugin can't be used: toy-a")
    assert reason in str(caught.value)
    assert registry.plugin("sound-database-plugin")
    states = {state.plugin_name: state for state in registry.list_plugins()}
    assert reason in states["toy-database-plugin"].reason
    assert states["toy-database-plugin"].plugin is None
    assert "toy-database-plugin" not in registry.fields()
    assert (states["sound-database-plugin"].reason, states["sound-database-plugin"].distributions) == ("", ("toy-b",))


def test_allowed_distributions_alone_are_loaded(install: Install) -> None:
    """With a list of distributions, others are reported and not imported; spelling counts as package indexes count it."""
    install("Toy_A", "toy")
    install("toy-b", "other")
    registry = Registry.installed(["toy.a"])
    assert registry.plugin("toy-database-plugin")
    with pytest.raises(EngineMissing, match="its distribution toy-b is not among the allowed ones"):
        registry.plugin("other-database-plugin")
    assert not any(name.startswith("toy_1") for name in sys.modules)


def test_plugin_is_examined_once() -> None:
    """What was found is kept: nothing is loaded a second time on a request's way."""
    loads = []

    def load() -> object:
        loads.append(1)
        return MemoryPlugin(MemoryServer())

    registry = Registry([Claim("memory", "tests", load)])
    assert registry.plugin("memory-database-plugin") is registry.plugin("memory-database-plugin")
    registry.list_plugins()
    assert loads == [1]
