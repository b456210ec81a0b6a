"""Which engine plugins are installed, and which of them can be used.

Ours are found exactly as a stranger's are, through the entry-point group. A plugin that can't be used is a state with its
reason; it hurts nobody else.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import cast

from broker.engines.protocol import PROTOCOL_VERSION, EnginePlugin, Fields, Traits
from broker.errors import EngineMissing, InvalidRequest

GROUP = "broker.engines"
_SUFFIX = "-database-plugin"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a distribution says: under this name, `load` imports an engine plugin."""

    name: str
    distribution: str
    load: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginState:
    """What is known of one plugin."""

    plugin_name: str
    """What a connection's `plugin_name` says: the entry point's name and `-database-plugin`."""
    distributions: tuple[str, ...]
    """Who claims the name; one, if all is well."""
    plugin: EnginePlugin | None = None
    reason: str = ""
    """Why it can't be used; empty when it can."""


class Registry:
    """Looks plugins up by their Vault name, and imports each one when it is first asked for."""

    def __init__(self, claims: Iterable[Claim], allowed_distributions: Collection[str] = ()) -> None:
        """Sorts the claims; loads nothing. An empty `allowed_distributions` allows all."""
        self._allowed = {_normal(name) for name in allowed_distributions}
        self._claims: dict[str, list[Claim]] = defaultdict(list)
        self._states: dict[str, PluginState] = {}
        for claim in claims:
            self._claims[claim.name + _SUFFIX].append(claim)

    @classmethod
    def installed(cls, allowed_distributions: Collection[str] = ()) -> Registry:
        """What is installed in this Python environment now. Reads the disc: for start-up, not for a request."""
        found = entry_points(group=GROUP)
        return cls(
            [Claim(point.name, point.dist.name if point.dist else "unknown", point.load) for point in found],
            allowed_distributions,
        )

    def plugin(self, plugin_name: str) -> EnginePlugin:
        """The plugin of that name.

        Raises `InvalidRequest` when none is installed, `EngineMissing` with the reason when it can't be used.
        """
        if plugin_name not in self._claims:
            names = ", ".join(sorted(self._claims)) or "none"
            raise InvalidRequest(f"plugin_name: no plugin {plugin_name!r} is installed; installed: {names}")
        state = self._state(plugin_name)
        if state.plugin is None:
            raise EngineMissing(f"the plugin {plugin_name} can't be used: {state.reason}")
        return state.plugin

    def list_plugins(self) -> list[PluginState]:
        """The state of every plugin by name; imports those that were not asked for yet."""
        return [self._state(name) for name in sorted(self._claims)]

    def fields(self) -> dict[str, Fields]:
        """What each plugin that can be used takes, by its name."""
        return {state.plugin_name: state.plugin.fields for state in self.list_plugins() if state.plugin is not None}

    def _state(self, plugin_name: str) -> PluginState:
        state = self._states.get(plugin_name)
        if state is None:
            state = self._states[plugin_name] = self._examined(plugin_name, self._claims[plugin_name])
        return state

    def _examined(self, plugin_name: str, claims: list[Claim]) -> PluginState:
        distributions = tuple(sorted(claim.distribution for claim in claims))
        plugin, reason = None, ""
        if len(claims) > 1:
            reason = f"claimed by {' and '.join(distributions)}; uninstall all but one"
        elif self._allowed and _normal(distributions[0]) not in self._allowed:
            reason = f"its distribution {distributions[0]} is not among the allowed ones (engines.allowed_distributions)"
        else:
            plugin, reason = _loaded(claims[0])
        return PluginState(plugin_name=plugin_name, distributions=distributions, plugin=plugin, reason=reason)


def _loaded(claim: Claim) -> tuple[EnginePlugin | None, str]:
    """The plugin and no reason, or the reason why there is none."""
    try:
        candidate = claim.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may raise anything when imported
        return None, f"{claim.distribution} can't be imported: {type(error).__name__}: {error}"
    reason = _fault(candidate)
    return (None, f"{claim.distribution}: {reason}") if reason else (cast(EnginePlugin, candidate), "")


def _fault(candidate: object) -> str:
    """What the candidate lacks of an engine plugin, or nothing."""
    version = getattr(candidate, "protocol_version", None)
    if version is None:
        return "it has no protocol_version, so it is no engine plugin"
    if version != PROTOCOL_VERSION:
        return f"it speaks protocol version {version} and this broker {PROTOCOL_VERSION}; install a matching release"
    if not isinstance(getattr(candidate, "traits", None), Traits):
        return "its traits are no Traits"
    if not isinstance(getattr(candidate, "fields", None), Fields):
        return "its fields are no Fields"
    if not isinstance(getattr(candidate, "secret_fields", None), frozenset | set):
        return "its secret_fields are no set"
    missing = [name for name in ("__call__", "check_config", "shown") if not callable(getattr(candidate, name, None))]
    return f"it lacks {', '.join(missing)}" if missing else ""


def _normal(distribution: str) -> str:
    """The name as package indexes compare it (PyPA specification "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
