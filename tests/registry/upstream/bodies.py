"""Bodies to ask about: small right ones, and values that make their fields wrong in most of the ways there are."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from kone.apimachinery import schema
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.schema import GoType
from tests.registry.pipeline import put, without

BODIES: dict[str, list[Object]] = json.loads(Path(__file__).with_name("bodies.json").read_text())
"""By kind: the smallest that is right, then richer ones."""

_LONG = ("x" * 64, "x" * 300)
_TEXTS = ("", "a", "A_B", "a/b", "a.b", "-", *_LONG, "/a/b", "10.0.0.1")
_INTEGERS = (0, 1, -1, 5, 70000, 2147483647)
_QUANTITIES = ("1", "0", "-1", "1.5", "1Mi", "100m")
_NOT_SET_BY_CLIENTS = frozenset(
    (
        *("managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "namespace", "uid"),
        *("resourceVersion", "creationTimestamp"),
    )
)
_AMOUNTS: list[Any] = [{"cpu": "1"}, {"cpu": "-1"}, {"x": "1"}, {"a.b/c": "1"}, {"a.b/c": "1.5"}, {"storage": "1Gi"}]
_AMOUNTS += [{"memory": "3"}, {"memory": "1m"}, {"pods": "1.5"}, {"ephemeral-storage": "1"}]
_AMOUNTS += [{"hugepages-2Mi": "2Mi"}, {"hugepages-2Mi": "3Mi", "cpu": "1"}]
_ROLLOUT: list[Any] = [0, 1, -1, "5%", "101%", "x"]

TELLING: dict[str, list[Any]] = {
    "accessModes": [["X"], ["ReadWriteOncePod"], ["ReadWriteOncePod", "ReadWriteOnce"]],
    "add": [["SYS_ADMIN"], ["CAP_X"]],
    "appProtocol": ["a b", "kubernetes.io/h2c"],
    "clusterIP": ["None", "x"],
    "clusterIPs": [["10.0.0.1"], ["None"], ["10.0.0.1", "fd00::1"]],
    "defaultMode": [511, 512],
    "driver": ["A", "a_b"],
    "expirationSeconds": [600, 5000000000],
    "externalIPs": [["10.0.0.1"], ["127.0.0.1"], ["x"]],
    "externalName": ["a_b", "a.b."],
    "fieldPath": ["metadata.name", "metadata.labels['a']", "metadata.labels", "status.podIP", "spec.nodeName", "x"],
    "finalizers": [["x"], ["a/b"], ["kubernetes"]],
    "hard": [*_AMOUNTS, {"requests.storage": "1"}, {"hugepages-2Mi": "1"}],
    "hostIP": ["x"],
    "image": ["i", "i:1", " i"],
    "ip": ["127.0.0.1", "::1", "fd00::1", "x", "010.0.0.1", "FD00::1"],
    "ipFamilies": [["IPv4"], ["IPv6", "IPv4"], ["X"], ["IPv4", "IPv4"]],
    "iqn": ["iqn.2001-04.com.example:x", "iqn.x", "eui.0123456789abcdef", "naa.62004567BA64678D0123456789ABCDEF"],
    "key": ["kubernetes.io/hostname", "A B"],
    "loadBalancerSourceRanges": [["10.0.0.0/8"], ["x"]],
    "localhostProfile": ["/a", "../a"],
    "maxSurge": _ROLLOUT,
    "maxUnavailable": _ROLLOUT,
    "medium": ["HugePages-2Mi", "HugePages-x"],
    "mode": [511, 512],
    "mountPath": ["a:b", "rel"],
    "name": ["a b", "x.y"],
    "nameservers": [["1.2.3.4"], ["x"], ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]],
    "operator": ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Equal", "X"],
    "path": ["/a", "a/../b", "../a", "/"],
    "podCIDR": ["10.0.0.0/24", "x"],
    "podCIDRs": [["10.0.0.0/24", "10.0.1.0/24"], ["10.0.0.0/24", "fd00::/64"], ["x", "x"]],
    "port": [80, "http", "HTTP_"],
    "procMount": ["Default", "Unmasked"],
    "resource": ["limits.cpu", "requests.memory", "limits.hugepages-2Mi", "x"],
    "runAsUser": [1 << 40],
    "runAsUserName": ["a\\b", "a:b"],
    "scheme": ["HTTP"],
    "scopes": [["BestEffort"], ["X"], ["Terminating", "NotTerminating"], ["PriorityClass"]],
    "searches": [["a.b"], ["A_"], ["."]],
    "signerName": ["a.b/c"],
    "sizeLimit": ["1Mi", "-1"],
    "subPath": ["/a", "../a"],
    "subPathExpr": ["$(A)", "/x"],
    "sysctls": [[{"name": "kernel.shm_rmid_forced", "value": "1"}], [{"name": "a/b", "value": "1"}], [{"name": "A b"}]],
    "targetPortal": ["1.2.3.4:3260"],
    "values": [["a"], ["A B"]],
    "whenUnsatisfiable": ["DoNotSchedule", "X"],
    **dict.fromkeys(
        ("limits", "requests", "max", "min", "default", "defaultRequest", "maxLimitRequestRatio"), _AMOUNTS
    ),
    **dict.fromkeys(("capacity", "allocatable", "overhead"), _AMOUNTS),
}
"""Values, by the field's name, that its rules tell apart."""


@cache
def enumerations(api: Path) -> dict[str, list[str]]:
    """By JSON name, the values that Go's constants list for fields of that name; `api` is the folder of k8s.io/api."""
    found: dict[str, set[str]] = defaultdict(set)
    for group in ("core", "apps", "events", "batch"):
        text = (api / group / "v1" / "types.go").read_text()
        constants: dict[str, set[str]] = defaultdict(set)
        for kind, value in re.findall(r'(?m)^\s+\w+\s+(\w+)\s*=\s*"([^"]*)"', text):
            constants[kind].add(value)
        for kind, name in re.findall(r'(?m)^\s+\w+\s+[\[\]*]*(\w+)\s+`json:"(\w+)', text):
            found[name] |= constants.get(kind, set())
    return {name: sorted(values) for name, values in found.items() if values}


def values_of(name: str, kind: GoType, known: dict[str, list[str]]) -> list[Any]:
    """What to try for a field."""
    telling = TELLING.get(name, [])
    if kind.code == schema.STRING:
        return [*dict.fromkeys([v for v in telling if isinstance(v, str)] + known.get(name, []) + list(_TEXTS))]
    if kind.code == schema.INTEGER:
        return [*dict.fromkeys([v for v in telling if isinstance(v, int)] + list(_INTEGERS))]
    if kind.code == schema.STRINGS:
        listed = [v for v in telling if isinstance(v, list)] + [[v] for v in known.get(name, [])]
        return [*listed, ["a"], ["a", "a"], ["A_B"], ["a/b"], [""]]
    if kind.code == schema.STRUCTS:
        return [v for v in telling if isinstance(v, list)] + [[{}], [{}, {}]]
    if kind.kind == schema.INT_OR_STRING:
        return [*telling, 0, 1, -1, "a", "5%", 70000, ""]
    if kind.code == schema.QUANTITY_MAP:
        return telling or _AMOUNTS
    if kind.code == schema.LIST:
        is_numbers = kind.element is not None and kind.element.code == schema.INTEGER
        return [[0], [1, 1], [-1], [1 << 40]] if is_numbers else []
    others: dict[int | str, list[Any]] = {
        schema.BOOLEAN: [True, False],
        schema.STRING_MAP: [{"a": "b"}, {"A B": "c"}, {"a": "b c"}, {"x.y/z": "q"}],
        schema.STRUCT: [{}],
        schema.QUANTITY: list(_QUANTITIES),
        schema.TIME: ["2020-01-01T00:00:00Z"],
        schema.MICRO_TIME: ["2020-01-01T00:00:00.000000Z"],
        "bytes": ["YQ=="],
    }
    return others.get(kind.code) or others.get(kind.kind) or []


def fields_of(body: Object) -> Iterator[tuple[str, GoType]]:
    """Every field of the body's kind: its path with 0 for items, and its type."""
    found = schema.definition_of(GVK(*parse_api_version(body["apiVersion"]), body["kind"]))
    assert found is not None
    yield from _fields(found, "", ())


def _fields(of: schema.Definition, path: str, above: tuple[str, ...]) -> Iterator[tuple[str, GoType]]:
    for name, (code, _, kind) in of.compiled.items():
        if name in _NOT_SET_BY_CLIENTS or (not above and name in ("apiVersion", "kind")):
            continue
        yield f"{path}{name}", kind
        inner = kind if code == schema.STRUCT else kind.element if code == schema.STRUCTS else None
        if inner is not None and inner.definition().name not in above:
            more = f"{path}{name}." if code == schema.STRUCT else f"{path}{name}.0."
            yield from _fields(inner.definition(), more, (*above, of.name))


def change(body: Object, choices: list[tuple[str, list[Any]]], rng: random.Random) -> Object:
    """The body with one field set or taken away; the same where that cannot be."""
    made: Object = deep_copy(body)
    if rng.random() < 0.2:
        present = [path for path in leaves(made) if path.split(".")[0] not in ("apiVersion", "kind", "metadata")]
        if present:
            without(made, rng.choice(present))
        return made
    path, values = rng.choice(choices)
    try:
        put(made, path, rng.choice(values))
    except (AttributeError, TypeError, KeyError):
        return body  # what is above it is not what the schema says, by an earlier change
    return made


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields and items in it, but for keys with dots, which no path can name."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if "." not in str(key):
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
