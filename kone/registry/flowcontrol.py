"""flowcontrol.apiserver.k8s.io: FlowSchemas and PriorityLevelConfigurations, how requests queue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.kinds import FLOWSCHEMAS, PRIORITYLEVELCONFIGURATIONS
from kone.apimachinery.names import is_dns1123_label, is_dns1123_subdomain
from kone.apimachinery.objects import Object, annotations_of, dig, find_condition
from kone.registry.equality import same
from kone.registry.internal import internal
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import ALL_METADATA, SpecStrategy, StatusStrategy

_MAX_PRECEDENCE, _DEFAULT_PRECEDENCE = 10_000, 1000
_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch")
_SUBJECT_KINDS = ("Group", "ServiceAccount", "User")
_DISTINGUISHERS = ("ByNamespace", "ByUser")


def _groups(*names: str) -> list[Object]:
    return [{"kind": "Group", "group": {"name": name}} for name in names]


def _everything(*groups: str) -> list[Object]:
    resources = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]}
    urls = {"verbs": ["*"], "nonResourceURLs": ["*"]}
    return [{"subjects": _groups(*groups), "resourceRules": [resources], "nonResourceRules": [urls]}]


MANDATORY_SCHEMAS: Final[Mapping[str, Object]] = {
    "exempt": {
        "priorityLevelConfiguration": {"name": "exempt"},
        "matchingPrecedence": 1,
        "rules": _everything("system:masters"),
    },
    "catch-all": {
        "priorityLevelConfiguration": {"name": "catch-all"},
        "matchingPrecedence": _MAX_PRECEDENCE,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": _everything("system:unauthenticated", "system:authenticated"),
    },
}
"""The two without which no request would be served: their specs cannot be changed."""

# -- flow schemas -----------------------------------------------------------------------------------------------------


class _FlowSchema(SpecStrategy):
    def default(self, obj: Object) -> None:
        if not obj["spec"].get("matchingPrecedence"):
            obj["spec"]["matchingPrecedence"] = _DEFAULT_PRECEDENCE

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        name, spec = obj["metadata"].get("name", ""), obj["spec"]
        path, precedence = "spec.matchingPrecedence", spec["matchingPrecedence"]
        if precedence <= 0:
            errors.append(invalid_value(path, precedence, "must be a positive value"))
        if precedence > _MAX_PRECEDENCE:
            errors.append(invalid_value(path, precedence, f"must not be greater than {_MAX_PRECEDENCE}"))
        if precedence == 1 and name != "exempt":
            text = "only the schema named 'exempt' may have matchingPrecedence 1"
            errors.append(invalid_value(path, precedence, text))
        method = spec.get("distinguisherMethod")
        if method is not None and method.get("type") not in _DISTINGUISHERS:
            shown = {"Type": method.get("type", "")}
            errors.append(not_supported("spec.distinguisherMethod.type", shown, _DISTINGUISHERS))
        level = dig(spec, "priorityLevelConfiguration", "name")
        if level:
            check(errors, "spec.priorityLevelConfiguration.name", level, is_dns1123_subdomain(level))
        else:
            errors.append(required("spec.priorityLevelConfiguration.name", "must reference a priority level"))
        for i, rule in enumerate(spec.get("rules") or ()):
            _rule(errors, f"spec.rules[{i}]", rule)
        fixed = MANDATORY_SCHEMAS.get(name)
        if fixed is not None and not same(spec, fixed):
            shown = internal("#flowcontrol.FlowSchemaSpec", spec)
            errors.append(invalid_value("spec", shown, f"spec of '{name}' must equal the fixed value"))
        return errors


def _conditions(obj: Object, old: Object) -> Iterable[FieldError]:
    seen: set[str] = set()
    for i, condition in enumerate(dig(obj, "status", "conditions", default=())):
        kind = condition.get("type", "")
        if kind in seen:
            yield duplicate(f"status.conditions[{i}].type", kind)
        seen.add(kind)
        if not kind:
            yield required(f"status.conditions[{i}].type")


def _rule(errors: Errors, path: str, rule: Mapping[str, Any]) -> None:
    subjects = rule.get("subjects") or ()
    resources, urls = rule.get("resourceRules") or (), rule.get("nonResourceRules") or ()
    for i, subject in enumerate(subjects):
        _subject(errors, f"{path}.subjects[{i}]", subject)
    if not subjects:
        errors.append(required(f"{path}.subjects", "subjects must contain at least one value"))
    if not resources and not urls:
        errors.append(required(path, "at least one of resourceRules and nonResourceRules has to be non-empty"))
    for i, each in enumerate(resources):
        _resource_rule(errors, f"{path}.resourceRules[{i}]", each)
    for i, each in enumerate(urls):
        _url_rule(errors, f"{path}.nonResourceRules[{i}]", each)


_SUBJECT_FIELDS = {"ServiceAccount": "serviceAccount", "User": "user", "Group": "group"}


def _subject(errors: Errors, path: str, subject: Mapping[str, Any]) -> None:
    kind = subject.get("kind", "")
    if kind not in _SUBJECT_KINDS:
        errors.append(not_supported(f"{path}.kind", kind, _SUBJECT_KINDS))
        return
    field = _SUBJECT_FIELDS[kind]
    found = subject.get(field)
    if found is None:
        errors.append(required(f"{path}.{field}", f"{field} is required when subject kind is '{kind}'"))
    elif kind == "ServiceAccount":
        _service_account(errors, f"{path}.{field}", found)
    elif not found.get("name"):
        errors.append(required(f"{path}.{field}.name"))
    for other, name in _SUBJECT_FIELDS.items():
        if other != kind and subject.get(name) is not None:
            errors.append(forbidden_field(f"{path}.{name}", f"{name} is forbidden when subject kind is not '{other}'"))


def _service_account(errors: Errors, path: str, account: Mapping[str, Any]) -> None:
    name, namespace = account.get("name", ""), account.get("namespace", "")
    if not name:
        errors.append(required(f"{path}.name"))
    elif name != "*":
        check(errors, f"{path}.name", name, is_dns1123_subdomain(name))
    if namespace:
        check(errors, f"{path}.namespace", namespace, is_dns1123_label(namespace))
    else:
        errors.append(required(f"{path}.namespace", "must specify namespace for service account"))


def _verbs(errors: Errors, path: str, verbs: Sequence[str]) -> None:
    if not verbs:
        errors.append(required(path, "verbs must contain at least one value"))
    elif "*" in verbs:
        if len(verbs) > 1:
            errors.append(invalid_value(path, verbs, "if '*' is present, must not specify other verbs"))
    elif not set(verbs) <= set(_VERBS):
        errors.append(not_supported(path, verbs, _VERBS))


def _url_rule(errors: Errors, path: str, rule: Mapping[str, Any]) -> None:
    _verbs(errors, f"{path}.verbs", rule.get("verbs") or ())
    urls = rule.get("nonResourceURLs") or ()
    if not urls:
        errors.append(required(f"{path}.nonResourceURLs", "nonResourceURLs must contain at least one value"))
    elif "*" in urls:
        if len(urls) > 1:
            text = "if '*' is present, must not specify other non-resource URLs"
            errors.append(invalid_value(f"{path}.nonResourceURLs", urls, text))
    else:
        for i, url in enumerate(urls):
            check(errors, f"{path}.nonResourceURLs[{i}]", url, _url_texts(url))


def _url_texts(url: str) -> Sequence[str]:
    if not url:
        return ("must not be empty",)
    if url == "/":
        return ()
    if not url.startswith("/"):
        return ("must start with slash",)
    if " " in url:
        return ("must not contain white-space",)
    if "//" in url:
        return ("must not contain double slash",)
    if url.count("*") > 1 or ("*" in url and not url.endswith("/*")):
        return ("wildcard can only do suffix matching",)
    return ()


_NAMESPACE_INTRO = "each member of this list must be '*' or a DNS-1123 label; "


def _resource_rule(errors: Errors, path: str, rule: Mapping[str, Any]) -> None:
    _verbs(errors, f"{path}.verbs", rule.get("verbs") or ())
    for field, one, many in (("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")):
        found = rule.get(field) or ()
        if not found:
            errors.append(required(f"{path}.{field}", f"resource rules must supply at least one {one}"))
        elif len(found) > 1 and "*" in found:
            errors.append(invalid_value(f"{path}.{field}", found, f"if '*' is present, must not specify other {many}"))
    namespaces = rule.get("namespaces") or ()
    if not namespaces and not rule.get("clusterScope"):
        text = "resource rules that are not cluster scoped must supply at least one namespace"
        errors.append(required(f"{path}.namespaces", text))
    elif "*" in namespaces:
        if len(namespaces) > 1:
            text = "if '*' is present, must not specify other namespaces"
            errors.append(invalid_value(f"{path}.namespaces", namespaces, text))
    else:
        for i, namespace in enumerate(namespaces):
            texts = [_NAMESPACE_INTRO + text for text in is_dns1123_label(namespace)]
            check(errors, f"{path}.namespaces[{i}]", namespace, texts)


def _missing_level(obj: Object, now: float) -> str:
    condition = find_condition(obj, "Dangling")
    return condition.get("status", "") if condition is not None else "?"


# -- priority levels --------------------------------------------------------------------------------------------------

_LEVEL_TYPES = ("Exempt", "Limited")
_RESPONSES = ("Queue", "Reject")
_MAX_QUEUES, _MAX_ENTROPY_BITS = 10_000_000, 60
_QUEUE_DEFAULTS: Mapping[str, int] = {"queues": 64, "handSize": 8, "queueLengthLimit": 50}
_ZERO_SHARES_ANNOTATION = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares"
MANDATORY_LEVELS: Final[Mapping[str, Object]] = {
    "exempt": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}},
    "catch-all": {
        "type": "Limited",
        "limited": {"nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}, "lendablePercent": 0},
    },
}


class _PriorityLevel(SpecStrategy):
    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        for kind, shares in (("limited", 30), ("exempt", 0)):
            part = spec.get(kind)
            if part is not None:
                if part.get("nominalConcurrencyShares") is None:
                    part["nominalConcurrencyShares"] = shares
                if part.get("lendablePercent") is None:
                    part["lendablePercent"] = 0
        queuing = dig(spec, "limited", "limitResponse", "queuing")
        if queuing is not None:
            for name, number in _QUEUE_DEFAULTS.items():
                if not queuing.get(name):
                    queuing[name] = number

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        name, spec = obj["metadata"].get("name", ""), obj["spec"]
        if _ZERO_SHARES_ANNOTATION in annotations_of(obj):
            text = f"annotation '{_ZERO_SHARES_ANNOTATION}' is forbidden"
            errors.append(forbidden_field("metadata.annotations", text))
        _level(errors, later, "spec", name, spec)
        why = _fixed_text(name, spec)
        if why:
            errors.append(invalid_value("spec", internal("#flowcontrol.PriorityLevelConfigurationSpec", spec), why))
        return errors + later


def _fixed_text(name: str, spec: Mapping[str, Any]) -> str:
    """Why a mandatory level may not be so; "" where it may."""
    if name == "exempt" and (spec.get("type") != "Exempt" or spec.get("limited") is not None):
        return "spec of 'exempt' except the 'spec.exempt' field must equal the fixed value"
    if name == "catch-all" and not same(spec, MANDATORY_LEVELS["catch-all"]):
        return "spec of 'catch-all' must equal the fixed value"
    return ""


def _level(errors: Errors, later: Errors, path: str, name: str, spec: Mapping[str, Any]) -> None:
    kind, limited, exempt = spec.get("type", ""), spec.get("limited"), spec.get("exempt")
    if (name == "exempt") != (kind == "Exempt"):
        errors.append(invalid_value(f"{path}.type", kind, "must be 'Exempt' if and only if `name` is 'exempt'"))
    _members(later, path, spec, {"exempt": kind == "Exempt", "limited": kind == "Limited"})
    if kind == "Exempt" and exempt is not None:
        _shares(errors, f"{path}.exempt", exempt)
        _lendable(errors, f"{path}.exempt", exempt)
    elif kind == "Limited":
        if limited is None:
            later.append(required(f"{path}.limited"))
        else:
            _limited(errors, later, f"{path}.limited", limited)
    elif not kind:
        later.append(required(f"{path}.type"))
    elif kind not in _LEVEL_TYPES:
        errors.append(not_supported(f"{path}.type", kind, _LEVEL_TYPES))


def _members(later: Errors, path: str, union: Mapping[str, Any], allowed: Mapping[str, bool]) -> None:
    """Of a union, only the member that its type names may be there."""
    later.extend(
        forbidden_field(f"{path}.{name}", "")
        for name, may in allowed.items()
        if not may and union.get(name) is not None
    )


def _shares(errors: Errors, path: str, part: Mapping[str, Any]) -> None:
    shares = part.get("nominalConcurrencyShares")
    if shares is not None and shares < 0:
        errors.append(invalid_value(f"{path}.nominalConcurrencyShares", shares, "must be a non-negative integer"))


def _lendable(errors: Errors, path: str, part: Mapping[str, Any]) -> None:
    percent = part.get("lendablePercent")
    if percent is not None and not 0 <= percent <= 100:
        errors.append(invalid_value(f"{path}.lendablePercent", percent, "must be between 0 and 100, inclusive"))


def _limited(errors: Errors, later: Errors, path: str, limited: Mapping[str, Any]) -> None:
    _shares(errors, path, limited)
    response = limited.get("limitResponse") or {}
    kind, queuing = response.get("type", ""), response.get("queuing")
    at = f"{path}.limitResponse"
    _members(later, at, response, {"queuing": kind == "Queue"})
    if kind == "Queue":
        if queuing is None:
            later.append(required(f"{at}.queuing"))
        else:
            _queuing(errors, f"{at}.queuing", queuing)
    elif not kind:
        later.append(required(f"{at}.type"))
    elif kind not in _RESPONSES:
        errors.append(not_supported(f"{at}.type", kind, _RESPONSES))
    _lendable(errors, path, limited)
    borrowing = limited.get("borrowingLimitPercent")
    if borrowing is not None and borrowing < 0:
        text = "if specified, must be a non-negative integer"
        errors.append(invalid_value(f"{path}.borrowingLimitPercent", borrowing, text))


def _queuing(errors: Errors, path: str, queuing: Mapping[str, Any]) -> None:
    limit, queues, hand = (queuing.get(name, 0) for name in ("queueLengthLimit", "queues", "handSize"))
    if limit <= 0:
        errors.append(invalid_value(f"{path}.queueLengthLimit", limit, "must be positive"))
    if queues <= 0:
        errors.append(invalid_value(f"{path}.queues", queues, "must be positive"))
    elif queues > _MAX_QUEUES:
        errors.append(invalid_value(f"{path}.queues", queues, f"must not be greater than {_MAX_QUEUES}"))
    if hand <= 0:
        errors.append(invalid_value(f"{path}.handSize", hand, "must be positive"))
    elif hand > queues:
        errors.append(invalid_value(f"{path}.handSize", hand, f"should not be greater than queues ({queues})"))
    elif math.ceil(math.log2(queues) * hand) > _MAX_ENTROPY_BITS:
        text = f"required entropy bits of deckSize {queues} and handSize {hand} should not be greater than"
        errors.append(invalid_value(f"{path}.handSize", hand, f"{text} {_MAX_ENTROPY_BITS}"))


def _limit(name: str, *path: str) -> Column:
    return Column(name, lambda obj, now: dig(obj, "spec", "limited", *path, default="<none>"))


_schema, _priority_level = _FlowSchema(), _PriorityLevel()

RESOURCES: Sequence[Resource] = (
    Resource(
        FLOWSCHEMAS,
        "FlowSchema",
        _schema,
        namespaced=False,
        status=StatusStrategy(_schema, kept_metadata=ALL_METADATA, rules=_conditions),
        columns=(
            NAME,
            Column(
                "PriorityLevel", lambda obj, now: dig(obj, "spec", "priorityLevelConfiguration", "name", default="")
            ),
            Column("MatchingPrecedence", lambda obj, now: dig(obj, "spec", "matchingPrecedence", default=0)),
            Column(
                "DistinguisherMethod",
                lambda obj, now: dig(obj, "spec", "distinguisherMethod", "type", default="<none>"),
            ),
            AGE,
            Column("MissingPL", _missing_level),
        ),
    ),
    Resource(
        PRIORITYLEVELCONFIGURATIONS,
        "PriorityLevelConfiguration",
        _priority_level,
        namespaced=False,
        status=StatusStrategy(_priority_level, kept_metadata=ALL_METADATA, rules=_conditions),
        columns=(
            NAME,
            Column("Type", lambda obj, now: dig(obj, "spec", "type", default="")),
            _limit("NominalConcurrencyShares", "nominalConcurrencyShares"),
            _limit("Queues", "limitResponse", "queuing", "queues"),
            _limit("HandSize", "limitResponse", "queuing", "handSize"),
            _limit("QueueLengthLimit", "limitResponse", "queuing", "queueLengthLimit"),
            AGE,
        ),
    ),
)
