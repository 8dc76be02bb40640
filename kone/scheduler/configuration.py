"""KubeSchedulerConfiguration: profiles, which plugins each has at which point, and the plugins' arguments.

A profile begins with upstream's default plugins (its `multiPoint`). A set for one point comes before what multiPoint
brings there; `disabled` takes plugins out, "*" all of them; `enabled` puts in, or gives another weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.config_files import ANY, ConfigFileError, fits, load, refuse
from kone.apimachinery.errors import FieldError, duplicate, invalid_value, not_supported, required
from kone.apimachinery.objects import Object
from kone.scheduler.plugins import DEFAULT
from kone.scheduler.queue import BACKOFF_FIRST_S, BACKOFF_MAX_S

API_VERSIONS = ("kubescheduler.config.k8s.io/v1",)
DEFAULT_SCHEDULER = "default-scheduler"
POINTS: Mapping[str, tuple[str, ...]] = {
    "preEnqueue": ("pre_enqueue",),
    "queueSort": (),
    "preFilter": ("pre_filter", "add_pod", "remove_pod"),
    "filter": ("filter",),
    "postFilter": ("post_filter",),
    "preScore": ("pre_score",),
    "score": ("score", "normalize"),
    "reserve": ("reserve", "unreserve"),
    "permit": ("permit",),
    "preBind": ("pre_bind",),
    "bind": (),
    "postBind": ("post_bind",),
}
"""Upstream's extension points with the methods of `framework.Plugin` that they switch. Pods are sorted by PrioritySort
and bound by DefaultBinder alone."""
FIXED = {"PrioritySort": "queueSort", "DefaultBinder": "bind"}
"""Plugins that are no classes here, with their point."""

_SET = {"enabled": [{"name": str, "weight": int}], "disabled": [{"name": str, "weight": int}]}
SHAPE: Mapping[str, Any] = {
    "parallelism": int,
    "leaderElection": ANY,
    "clientConnection": ANY,
    "healthzBindAddress": str,
    "metricsBindAddress": str,
    "enableProfiling": bool,
    "enableContentionProfiling": bool,
    "percentageOfNodesToScore": int,
    "podInitialBackoffSeconds": int,
    "podMaxBackoffSeconds": int,
    "delayCacheUntilActive": bool,
    "extenders": [ANY],
    "profiles": [
        {
            "schedulerName": str,
            "percentageOfNodesToScore": int,
            "plugins": {"multiPoint": _SET, **dict.fromkeys(POINTS, _SET)},
            "pluginConfig": [{"name": str, "args": ANY}],
        }
    ],
}


@dataclass(frozen=True, slots=True)
class Profile:
    """One scheduler by name. `points`: for each point of upstream's names, its plugins in order, with their weights;
    `args`: what is said of plugins, by their names. `percentage` of the nodes to look at for enough that fit; 0 lets
    the size of the cluster say."""

    name: str
    points: Mapping[str, Mapping[str, int]]
    args: Mapping[str, Object] = field(default_factory=dict)
    percentage: int = 0


@dataclass(frozen=True, slots=True)
class Configuration:
    profiles: tuple[Profile, ...]
    backoff_first_s: float = BACKOFF_FIRST_S
    backoff_max_s: float = BACKOFF_MAX_S


KNOWN = {plugin.name: plugin for plugin in DEFAULT}


def default_configuration() -> Configuration:
    """What a scheduler that is told nothing does."""
    return Configuration((_profile({}, 0),))


def parse_configuration(text: str) -> Configuration:
    """The configuration in `text` (YAML or JSON). Raises ConfigFileError with what is wrong, on one line."""
    found = load(text, "KubeSchedulerConfiguration", API_VERSIONS, SHAPE)
    refuse(list(_problems(found)))
    percentage = found.get("percentageOfNodesToScore") or 0
    profiles = found.get("profiles") or [{}]
    if len(profiles) == 1 and not profiles[0].get("schedulerName"):
        profiles = [{**profiles[0], "schedulerName": DEFAULT_SCHEDULER}]
    return Configuration(
        tuple(_profile(profile, percentage) for profile in profiles),
        float(found.get("podInitialBackoffSeconds", BACKOFF_FIRST_S)),
        float(found.get("podMaxBackoffSeconds", BACKOFF_MAX_S)),
    )


def _profile(found: Mapping[str, Any], percentage: int) -> Profile:
    own = found.get("percentageOfNodesToScore")
    return Profile(
        found.get("schedulerName") or DEFAULT_SCHEDULER,
        points_of(found.get("plugins") or {}),
        {config["name"]: config.get("args") or {} for config in found.get("pluginConfig") or ()},
        percentage if own is None else own,
    )


def points_of(plugins: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Each point's plugins, in order, with their weights."""
    defaults = {"PrioritySort": 0, **{plugin.name: plugin.weight for plugin in DEFAULT}, "DefaultBinder": 0}
    everywhere = _merged(defaults, plugins.get("multiPoint") or {})
    points: dict[str, dict[str, int]] = {}
    for point in POINTS:
        of_point = plugins.get(point) or {}
        enabled = {
            entry["name"]: entry.get("weight") or _weight(entry["name"]) for entry in of_point.get("enabled") or ()
        }
        disabled = {entry["name"] for entry in of_point.get("disabled") or ()}
        inherited = {
            name: weight
            for name, weight in everywhere.items()
            if name not in enabled and not disabled & {name, "*"} and _has(name, point)
        }
        # What overrides a plugin of multiPoint stays where that was; what is new comes first.
        new = {name: weight for name, weight in enabled.items() if name not in everywhere}
        old = {
            name: enabled.get(name, weight)
            for name, weight in everywhere.items()
            if name in enabled or name in inherited
        }
        points[point] = {**new, **old}
    return points


def _merged(defaults: Mapping[str, int], changes: Mapping[str, Any]) -> dict[str, int]:
    disabled = {entry["name"] for entry in changes.get("disabled") or ()}
    enabled = {entry["name"]: entry.get("weight") or 0 for entry in changes.get("enabled") or ()}
    kept = {name: enabled.pop(name, 0) or weight for name, weight in defaults.items() if not disabled & {name, "*"}}
    return kept | {name: weight or _weight(name) for name, weight in enabled.items()}


def _weight(name: str) -> int:
    return KNOWN[name].weight if name in KNOWN else 0


def _has(name: str, point: str) -> bool:
    """Whether the plugin has something to do at the point."""
    if name in FIXED:
        return FIXED[name] == point
    return KNOWN[name].has_any(POINTS[point])


# -- what is wrong ----------------------------------------------------------------------------------------------------


def _problems(found: Object) -> Iterator[FieldError]:
    if found.get("parallelism", 1) <= 0:
        yield invalid_value("parallelism", found["parallelism"], "should be an integer value greater than zero")
    yield from _percentage("percentageOfNodesToScore", found.get("percentageOfNodesToScore"))
    first, most = found.get("podInitialBackoffSeconds", 1), found.get("podMaxBackoffSeconds", 10)
    if first <= 0:
        yield invalid_value("podInitialBackoffSeconds", first, "must be greater than 0")
    if most < first:
        yield invalid_value("podMaxBackoffSeconds", most, "must be greater than or equal to PodInitialBackoffSeconds")
    if found.get("extenders"):
        yield FieldError("FieldValueForbidden", "extenders", "extenders are not served")
    profiles = found.get("profiles")
    if profiles is not None and not profiles:
        yield required("profiles")
    seen: set[str] = set()
    for i, profile in enumerate(profiles or ()):
        path, name = f"profiles[{i}]", profile.get("schedulerName") or ""
        if not name and len(profiles or ()) > 1:
            yield required(f"{path}.schedulerName")
        elif name in seen:
            yield duplicate(f"{path}.schedulerName", name)
        seen.add(name)
        yield from _percentage(f"{path}.percentageOfNodesToScore", profile.get("percentageOfNodesToScore"))
        yield from _plugin_problems(f"{path}.plugins", profile.get("plugins") or {})
        yield from _argument_problems(f"{path}.pluginConfig", profile.get("pluginConfig") or ())


def _percentage(path: str, value: int | None) -> Iterator[FieldError]:
    if value is not None and not 0 <= value <= 100:
        yield invalid_value(path, value, "not in valid range [0-100]")


def _plugin_problems(path: str, plugins: Mapping[str, Any]) -> Iterator[FieldError]:
    for point, chosen in plugins.items():
        for i, entry in enumerate((chosen or {}).get("enabled") or ()):
            name = entry.get("name") or ""
            if name not in KNOWN and name not in FIXED:
                yield invalid_value(f"{path}.{point}.enabled[{i}]", name, "there is no such plugin")
            elif point != "multiPoint" and not _has(name, point):
                yield invalid_value(f"{path}.{point}.enabled[{i}]", name, f"the plugin does nothing at {point}")
    points = points_of(plugins) if not any(_unknown(chosen) for chosen in plugins.values()) else {}
    if points and list(points["queueSort"]) != ["PrioritySort"]:
        yield invalid_value(f"{path}.queueSort", list(points["queueSort"]), "one queue sort plugin must be enabled")
    if points and list(points["bind"]) != ["DefaultBinder"]:
        yield invalid_value(f"{path}.bind", list(points["bind"]), "at least one bind plugin is needed")


def _unknown(chosen: Mapping[str, Any] | None) -> bool:
    return any(entry.get("name") not in {*KNOWN, *FIXED} for entry in (chosen or {}).get("enabled") or ())


def _argument_problems(path: str, configs: Sequence[Mapping[str, Any]]) -> Iterator[FieldError]:
    seen: set[str] = set()
    for i, config in enumerate(configs):
        at, name = f"{path}[{i}]", config.get("name") or ""
        if name in seen:
            yield duplicate(at, name)
        seen.add(name)
        plugin = KNOWN.get(name)
        if plugin is None:
            yield not_supported(f"{at}.name", name, sorted(KNOWN))
            continue
        args = config.get("args") or {}
        if args.get("kind", f"{name}Args") != f"{name}Args":
            yield invalid_value(f"{at}.args", args["kind"], "has to match plugin args")
        try:
            fits(args, {"kind": str, "apiVersion": str, **plugin.arguments})
        except ConfigFileError as error:
            yield invalid_value(f"{at}.args", None, str(error))
            continue
        yield from plugin.check(f"{at}.args", args)
