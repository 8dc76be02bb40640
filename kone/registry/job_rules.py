"""Rules on the spec of a Job, its own or a CronJob's template (ValidateJobSpec), in upstream's order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import (
    OMITTED,
    duplicate,
    go_quote,
    invalid_value,
    not_supported,
    required,
    too_long,
    too_many,
)
from kone.apimachinery.names import is_qualified_name
from kone.registry.core.pod_spec import pod_template
from kone.registry.internal import internal
from kone.registry.networking import domain_prefixed_path
from kone.registry.rules import Errors, at_least_0, check

_COUNTS = (
    "parallelism",
    "completions",
    "activeDeadlineSeconds",
    "backoffLimit",
    "ttlSecondsAfterFinished",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
)
_MODES = ("NonIndexed", "Indexed")
_INDEXED_ONLY = "requires indexed completion mode"
_MAX_PARALLELISM, _MAX_FAILED = 100_000, 100_000
_MANY_COMPLETIONS, _MAX_FAILED_OF_MANY, _MAX_PARALLELISM_OF_MANY = 100_000, 10_000, 10_000
_MAX_MANAGED_BY = 63
_MAX_RULES, _MAX_EXIT_CODES, _MAX_PATTERNS = 20, 255, 20
_MAX_INDEXES_BYTES = 64 * 1024
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
_OPERATORS = ("In", "NotIn")
_STATUSES = ("False", "True", "Unknown")
_REPLACEMENTS = ("Failed", "TerminatingOrFailed")
_RESTARTS = ("OnFailure", "Never")


def _valid(values: Sequence[str]) -> str:
    return "valid values: [" + " ".join(map(go_quote, values)) + "]"


def job_spec(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    later: Errors = []
    for name in _COUNTS:
        at_least_0(errors, f"{path}.{name}", spec.get(name))
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        later.append(required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified"))
    manager = spec.get("managedBy")
    if manager is not None:
        if manager:
            errors.extend(domain_prefixed_path(f"{path}.managedBy", manager))
        else:
            errors.append(required(f"{path}.managedBy"))
        if len(manager.encode()) > _MAX_MANAGED_BY:
            errors.append(too_long(f"{path}.managedBy", _MAX_MANAGED_BY))
    _completion_mode(errors, path, spec)
    policy = spec.get("podFailurePolicy")
    if policy is not None:
        _failure_policy(errors, f"{path}.podFailurePolicy", policy, spec)
    if spec.get("successPolicy") is not None:
        if spec.get("completionMode") == "Indexed":
            _success_policy(errors, f"{path}.successPolicy", spec["successPolicy"], spec.get("completions") or 0)
        else:
            shown = internal("#batch.SuccessPolicy", spec["successPolicy"])
            errors.append(invalid_value(f"{path}.successPolicy", shown, _INDEXED_ONLY))
    replacement = spec.get("podReplacementPolicy")
    allowed = _REPLACEMENTS[:1] if policy is not None else _REPLACEMENTS
    if replacement is not None and replacement not in allowed:
        errors.append(not_supported(f"{path}.podReplacementPolicy", replacement, allowed))
    pod_template(errors, f"{path}.template", spec.get("template") or {})
    _restart_policy(errors, f"{path}.template.spec.restartPolicy", spec)
    errors.extend(later)


def _restart_policy(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    restart = ((spec.get("template") or {}).get("spec") or {}).get("restartPolicy", "")
    if restart in ("", "Always"):
        errors.append(required(path, 'valid values: "OnFailure", "Never"'))
    elif restart not in _RESTARTS:
        errors.append(not_supported(path, restart, _RESTARTS))
    elif spec.get("podFailurePolicy") is not None and restart != "Never":
        errors.append(invalid_value(path, restart, 'only "Never" is supported when podFailurePolicy is specified'))


def _completion_mode(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    mode, completions, parallelism = (spec.get(name) for name in ("completionMode", "completions", "parallelism"))
    failed, per_index = spec.get("maxFailedIndexes"), spec.get("backoffLimitPerIndex")
    if mode is not None and mode not in _MODES:
        errors.append(not_supported(f"{path}.completionMode", mode, _MODES))
    if mode != "Indexed":
        if mode in (None, "NonIndexed"):
            for name, value in (("backoffLimitPerIndex", per_index), ("maxFailedIndexes", failed)):
                if value is not None:
                    errors.append(invalid_value(f"{path}.{name}", value, _INDEXED_ONLY))
        return
    if completions is None:
        errors.append(required(f"{path}.completions", "when completion mode is Indexed"))
    if parallelism is not None and parallelism > _MAX_PARALLELISM:
        text = f"must be less than or equal to {_MAX_PARALLELISM} when completion mode is Indexed"
        errors.append(invalid_value(f"{path}.parallelism", parallelism, text))
    if completions is not None and failed is not None and failed > completions:
        errors.append(invalid_value(f"{path}.maxFailedIndexes", failed, "must be less than or equal to completions"))
    if failed is not None and failed > _MAX_FAILED:
        errors.append(invalid_value(f"{path}.maxFailedIndexes", failed, f"must be less than or equal to {_MAX_FAILED}"))
    if completions is not None and completions > _MANY_COMPLETIONS and per_index is not None:
        _many_completions(errors, path, parallelism, failed)


def _many_completions(errors: Errors, path: str, parallelism: int | None, failed: int | None) -> None:
    if failed is None:
        text = f"must be specified when completions is above {_MANY_COMPLETIONS}"
        errors.append(required(f"{path}.maxFailedIndexes", text))
    why = f"when completions are above {_MANY_COMPLETIONS} and used with backoff limit per index"
    for name, value, most in (
        ("parallelism", parallelism, _MAX_PARALLELISM_OF_MANY),
        ("maxFailedIndexes", failed, _MAX_FAILED_OF_MANY),
    ):
        if value is not None and value > most:
            errors.append(invalid_value(f"{path}.{name}", value, f"must be less than or equal to {most} {why}"))


def _failure_policy(errors: Errors, path: str, policy: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    rules = policy.get("rules") or ()
    if len(rules) > _MAX_RULES:
        errors.append(too_many(f"{path}.rules", len(rules), _MAX_RULES))
    template = (spec.get("template") or {}).get("spec") or {}
    containers = [*(template.get("containers") or ()), *(template.get("initContainers") or ())]
    names = {container.get("name") for container in containers}
    per_index = spec.get("backoffLimitPerIndex") is not None
    for i, rule in enumerate(rules):
        _failure_rule(errors, f"{path}.rules[{i}]", rule, per_index, names)


def _failure_rule(
    errors: Errors, path: str, rule: Mapping[str, Any], per_index: bool, containers: set[str | None]
) -> None:
    action, codes, patterns = rule.get("action", ""), rule.get("onExitCodes"), rule.get("onPodConditions") or ()
    if not action:
        errors.append(required(f"{path}.action", _valid(_ACTIONS)))
    elif action == "FailIndex" and not per_index:
        errors.append(invalid_value(f"{path}.action", action, "requires the backoffLimitPerIndex to be set"))
    elif action not in _ACTIONS:
        errors.append(not_supported(f"{path}.action", action, _ACTIONS))
    if codes is not None:
        _exit_codes(errors, f"{path}.onExitCodes", codes, containers)
    if len(patterns) > _MAX_PATTERNS:
        errors.append(too_many(f"{path}.onPodConditions", len(patterns), _MAX_PATTERNS))
    for i, pattern in enumerate(patterns):
        at, kind, status = f"{path}.onPodConditions[{i}]", pattern.get("type", ""), pattern.get("status", "")
        check(errors, f"{at}.type", kind, is_qualified_name(kind))
        if status not in _STATUSES:
            errors.append(not_supported(f"{at}.status", status, _STATUSES))
    if codes is not None and patterns:
        text = "specifying both OnExitCodes and OnPodConditions is not supported"
        errors.append(invalid_value(path, OMITTED, text))
    if codes is None and not patterns:
        errors.append(invalid_value(path, OMITTED, "specifying one of OnExitCodes and OnPodConditions is required"))


def _exit_codes(errors: Errors, path: str, codes: Mapping[str, Any], containers: set[str | None]) -> None:
    operator, container, values = codes.get("operator", ""), codes.get("containerName"), codes.get("values") or []
    if not operator:
        errors.append(required(f"{path}.operator", _valid(_OPERATORS)))
    elif operator not in _OPERATORS:
        errors.append(not_supported(f"{path}.operator", operator, _OPERATORS))
    if container is not None and container not in containers:
        text = "must be one of the container or initContainer names in the pod template"
        errors.append(invalid_value(f"{path}.containerName", container, text))
    if not values:
        errors.append(invalid_value(f"{path}.values", codes.get("values"), "at least one value is required"))
    elif len(values) > _MAX_EXIT_CODES:
        errors.append(too_many(f"{path}.values", len(values), _MAX_EXIT_CODES))
    for i, value in enumerate(values):
        if operator == "In" and value == 0:
            errors.append(invalid_value(f"{path}.values[{i}]", value, "must not be 0 for the In operator"))
        if value in values[:i]:
            errors.append(duplicate(f"{path}.values[{i}]", value))
    if sorted(values) != values:
        errors.append(invalid_value(f"{path}.values", values, "must be ordered"))


def _success_policy(errors: Errors, path: str, policy: Mapping[str, Any], completions: int) -> None:
    rules = policy.get("rules") or ()
    if not rules:
        text = "at least one rules must be specified when the successPolicy is specified"
        errors.append(required(f"{path}.rules", text))
    if len(rules) > _MAX_RULES:
        errors.append(too_many(f"{path}.rules", len(rules), _MAX_RULES))
    for i, rule in enumerate(rules):
        _success_rule(errors, f"{path}.rules[{i}]", rule, completions)


def _success_rule(errors: Errors, path: str, rule: Mapping[str, Any], completions: int) -> None:
    count, indexes = rule.get("succeededCount"), rule.get("succeededIndexes")
    if count is None and indexes is None:
        text = "at least one of succeededCount or succeededIndexes must be specified"
        errors.append(required(path, text))
    total = 0
    if indexes is not None:
        if len(indexes) > _MAX_INDEXES_BYTES:
            errors.append(too_long(f"{path}.succeededIndexes", _MAX_INDEXES_BYTES))
        try:
            total = count_indexes(indexes, completions)
        except ValueError as error:
            text = f"error parsing succeededIndexes: {error}"
            errors.append(invalid_value(f"{path}.succeededIndexes", indexes, text))
    if count is not None:
        at = f"{path}.succeededCount"
        at_least_0(errors, at, count)
        if count > completions:
            text = f"must be less than or equal to {completions} (the number of specified completions)"
            errors.append(invalid_value(at, count, text))
        if indexes is not None and count > total:
            why = "(the number of indexes in the specified succeededIndexes field)"
            errors.append(invalid_value(at, count, f"must be less than or equal to {total} {why}"))


def count_indexes(text: str, completions: int) -> int:
    """How many indexes "0,2-4" names, all below `completions`, rising. Raises ValueError in upstream's words."""
    total, last = 0, -1
    for i, part in enumerate(text.split(",") if text else ()):
        low, high = parse_interval(part, completions)
        if i and last >= low:
            raise ValueError(f"non-increasing order, previous: {last}, current: {low}")
        total += high - low + 1
        last = high
    return total


def parse_interval(text: str, completions: int) -> tuple[int, int]:
    """The first and last index of "3" or "2-4". Raises ValueError in upstream's words."""
    bounds = text.split("-")
    if len(bounds) > 2:
        why = "violates the requirement that an index interval can have at most two parts separated by '-'"
        raise ValueError(f"the fragment {go_quote(text)} {why}")
    numbers: list[int] = []
    for bound in bounds:
        if not re.fullmatch("[+-]?[0-9]+", bound):
            raise ValueError(f"cannot convert string to integer for index: {go_quote(bound)}")
        number = int(bound)
        if number >= completions:
            raise ValueError(f"too large index: {go_quote(bound)}")
        if numbers and numbers[0] >= number:
            raise ValueError(f"non-increasing order, previous: {numbers[0]}, current: {number}")
        numbers.append(number)
    return numbers[0], numbers[-1]
