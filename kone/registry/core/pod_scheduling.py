"""Rules on what steers the scheduler: affinity, node selectors, tolerations, topology spread, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import duplicate, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.names import is_dns1123_label, is_dns1123_subdomain, is_qualified_name, is_valid_label_value
from kone.registry.rules import NOT_ABOVE_ZERO, Errors, check, label_selector

TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_BAD_OPERATOR = "not a valid selector operator"
_UNSATISFIABLE = ("DoNotSchedule", "ScheduleAnyway")
_INCLUSION = ("Honor", "Ignore")
_MATCH_ALL = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'


def affinity(errors: Errors, path: str, found: Mapping[str, Any]) -> None:
    node = found.get("nodeAffinity")
    if node is not None:
        _node_affinity(errors, f"{path}.nodeAffinity", node)
    for kind in ("podAffinity", "podAntiAffinity"):
        if found.get(kind) is not None:
            _pod_affinity(errors, f"{path}.{kind}", found[kind])


def _node_affinity(errors: Errors, path: str, found: Mapping[str, Any]) -> None:
    must = found.get("requiredDuringSchedulingIgnoredDuringExecution")
    if must is not None:
        node_selector(errors, f"{path}.requiredDuringSchedulingIgnoredDuringExecution", must)
    at = f"{path}.preferredDuringSchedulingIgnoredDuringExecution"
    for i, term in enumerate(found.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        _weight(errors, f"{at}[{i}]", term)
        # A preference that no node can meet does no harm, so its values may be anything.
        _node_selector_term(errors, f"{at}[{i}].preference", term.get("preference") or {}, any_value=True)


def node_selector(errors: Errors, path: str, found: Mapping[str, Any]) -> None:
    """A NodeSelector: at least one term."""
    terms = found.get("nodeSelectorTerms")
    if not terms:
        errors.append(required(f"{path}.nodeSelectorTerms", "must have at least one node selector term"))
    for i, term in enumerate(terms or ()):
        _node_selector_term(errors, f"{path}.nodeSelectorTerms[{i}]", term, any_value=False)


def _node_selector_term(errors: Errors, path: str, term: Mapping[str, Any], *, any_value: bool) -> None:
    for i, requirement in enumerate(term.get("matchExpressions") or ()):
        _node_expression(errors, f"{path}.matchExpressions[{i}]", requirement, any_value=any_value)
    for i, requirement in enumerate(term.get("matchFields") or ()):
        _node_field(errors, f"{path}.matchFields[{i}]", requirement)


def _node_expression(errors: Errors, path: str, requirement: Mapping[str, Any], *, any_value: bool) -> None:
    operator, values = requirement.get("operator", ""), requirement.get("values") or ()
    key, at = requirement.get("key", ""), f"{path}.values"
    if operator in ("In", "NotIn"):
        if not values:
            errors.append(required(at, "must be specified when `operator` is 'In' or 'NotIn'"))
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            errors.append(forbidden_field(at, text))
    elif operator in ("Gt", "Lt"):
        if len(values) != 1:
            errors.append(required(at, "must be specified single value when `operator` is 'Lt' or 'Gt'"))
    else:
        errors.append(invalid_value(f"{path}.operator", operator, _BAD_OPERATOR))
    check(errors, f"{path}.key", key, is_qualified_name(key))
    if not any_value:
        for i, value in enumerate(values):
            check(errors, f"{at}[{i}]", value, is_valid_label_value(value))


def _node_field(errors: Errors, path: str, requirement: Mapping[str, Any]) -> None:
    operator, values, key = requirement.get("operator", ""), requirement.get("values") or (), requirement.get("key", "")
    if operator not in ("In", "NotIn"):
        errors.append(invalid_value(f"{path}.operator", operator, _BAD_OPERATOR))
    elif len(values) != 1:
        text = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
        errors.append(required(f"{path}.values", text))
    if key != "metadata.name":
        errors.append(invalid_value(f"{path}.key", key, "not a valid field selector key"))
        return
    for i, value in enumerate(values):
        check(errors, f"{path}.values[{i}]", value, is_dns1123_subdomain(value))


def _weight(errors: Errors, path: str, term: Mapping[str, Any]) -> None:
    weight = term.get("weight", 0)
    if not 1 <= weight <= 100:
        errors.append(invalid_value(f"{path}.weight", weight, "must be in the range 1-100"))


def _pod_affinity(errors: Errors, path: str, found: Mapping[str, Any]) -> None:
    at = f"{path}.requiredDuringSchedulingIgnoredDuringExecution"
    for i, term in enumerate(found.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
        _pod_affinity_term(errors, f"{at}[{i}]", term)
    at = f"{path}.preferredDuringSchedulingIgnoredDuringExecution"
    for i, weighted in enumerate(found.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        _weight(errors, f"{at}[{i}]", weighted)
        _pod_affinity_term(errors, f"{at}[{i}].podAffinityTerm", weighted.get("podAffinityTerm") or {})


def _pod_affinity_term(errors: Errors, path: str, term: Mapping[str, Any]) -> None:
    label_selector(errors, f"{path}.labelSelector", term.get("labelSelector"))
    label_selector(errors, f"{path}.namespaceSelector", term.get("namespaceSelector"))
    for namespace in term.get("namespaces") or ():
        check(errors, f"{path}.namespace", namespace, is_dns1123_label(namespace))
    keys, other_keys = term.get("matchLabelKeys") or (), term.get("mismatchLabelKeys") or ()
    if keys or other_keys:
        match_label_keys(errors, path, keys, other_keys, term.get("labelSelector"))
    topology = term.get("topologyKey", "")
    if not topology:
        errors.append(required(f"{path}.topologyKey", "can not be empty"))
    check(errors, f"{path}.topologyKey", topology, is_qualified_name(topology))


def match_label_keys(
    errors: Errors,
    path: str,
    keys: Sequence[str],
    other_keys: Sequence[str],
    selector: Mapping[str, Any] | None,
) -> None:
    """matchLabelKeys and mismatchLabelKeys: label keys, not also in the selector, not both.

    Runs after `prepare` has merged the keys into the selector: a key of matchLabelKeys stands in it once; twice means
    that the client had it there too.
    """
    for field, found in (("matchLabelKeys", keys), ("mismatchLabelKeys", other_keys)):
        if found and selector is None:
            text = "must not be specified when labelSelector is not set"
            errors.append(forbidden_field(f"{path}.{field}", text))
        elif found:
            for i, key in enumerate(found):
                check(errors, f"{path}.{field}[{i}]", key, is_qualified_name(key))
    if selector is not None:
        positions = {key: i for i, key in enumerate(keys)}
        seen = set(selector.get("matchLabels") or ())
        for expression in selector.get("matchExpressions") or ():
            key = expression.get("key", "")
            if key in positions and key in seen:
                text = "exists in both matchLabelKeys and labelSelector"
                errors.append(invalid_value(f"{path}[{positions[key]}]", key, text))
            seen.add(key)
    for i, key in enumerate(keys):
        if key in other_keys:
            text = "exists in both matchLabelKeys and mismatchLabelKeys"
            errors.append(invalid_value(f"{path}.matchLabelKeys[{i}]", key, text))


def topology_spread(errors: Errors, path: str, constraints: Sequence[Mapping[str, Any]]) -> None:
    for i, constraint in enumerate(constraints):
        at, action, topology = (
            f"{path}[{i}]",
            constraint.get("whenUnsatisfiable", ""),
            constraint.get("topologyKey", ""),
        )
        skew, domains = constraint.get("maxSkew", 0), constraint.get("minDomains")
        if skew <= 0:
            errors.append(invalid_value(f"{at}.maxSkew", skew, NOT_ABOVE_ZERO))
        if not topology:
            errors.append(required(f"{at}.topologyKey", "can not be empty"))
        if action not in _UNSATISFIABLE:
            errors.append(not_supported(f"{at}.whenUnsatisfiable", action, _UNSATISFIABLE))
        if any(
            (other.get("topologyKey", ""), other.get("whenUnsatisfiable", "")) == (topology, action)
            for other in constraints[i + 1 :]
        ):
            field = f"{at}.{{topologyKey, whenUnsatisfiable}}"
            errors.append(duplicate(field, f"{{{topology}, {action}}}"))
        if domains is not None:
            if domains <= 0:
                errors.append(invalid_value(f"{at}.minDomains", domains, NOT_ABOVE_ZERO))
            if action != "DoNotSchedule":
                text = f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                errors.append(invalid_value(f"{at}.minDomains", domains, text))
        for field in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            policy = constraint.get(field)
            if policy is not None and policy not in _INCLUSION:
                errors.append(not_supported(f"{at}.{field}", policy, _INCLUSION))
        selector = constraint.get("labelSelector")
        if constraint.get("matchLabelKeys"):
            match_label_keys(errors, at, constraint["matchLabelKeys"], (), selector)
        label_selector(errors, f"{at}.labelSelector", selector)


def tolerations(errors: Errors, path: str, found: Sequence[Mapping[str, Any]]) -> None:
    for i, toleration in enumerate(found):
        at, key, operator = f"{path}[{i}]", toleration.get("key", ""), toleration.get("operator", "")
        value, effect = toleration.get("value", ""), toleration.get("effect", "")
        if key:
            check(errors, f"{at}.key", key, is_qualified_name(key))
        elif operator != "Exists":
            errors.append(invalid_value(f"{at}.operator", operator, _MATCH_ALL))
        if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
            text = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            errors.append(invalid_value(f"{at}.effect", effect, text))
        if operator in ("", "Equal"):
            wrong = is_valid_label_value(value)
            if wrong:
                errors.append(invalid_value(f"{at}.operator", value, ";".join(wrong)))
        elif operator == "Exists":
            if value:
                text = "value must be empty when `operator` is 'Exists'"
                errors.append(invalid_value(f"{at}.operator", value, text))
        elif operator in ("Lt", "Gt"):
            errors.append(not_supported(f"{at}.operator", operator, ("Equal", "Exists", "Lt", "Gt")))
        else:
            errors.append(not_supported(f"{at}.operator", operator, ("Equal", "Exists")))
        if effect:
            taint_effect(errors, f"{at}.effect", effect)


def taint_effect(errors: Errors, path: str, effect: str) -> None:
    if effect not in TAINT_EFFECTS:
        errors.append(not_supported(path, effect, TAINT_EFFECTS))


def scheduling_gates(errors: Errors, path: str, gates: Sequence[Mapping[str, Any]]) -> None:
    seen: set[str] = set()
    for i, gate in enumerate(gates):
        name = gate.get("name", "")
        check(errors, f"{path}[{i}]", name, is_qualified_name(name))
        if name in seen:
            errors.append(duplicate(f"{path}[{i}]", name))
        seen.add(name)


def readiness_gates(errors: Errors, path: str, gates: Sequence[Mapping[str, Any]]) -> None:
    for i, gate in enumerate(gates):
        kind = gate.get("conditionType", "")
        check(errors, f"{path}[{i}].conditionType", kind, is_qualified_name(kind))
