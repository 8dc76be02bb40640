"""PodSecurity: a namespace's labels say which Pod Security Standard its pods must keep, or are warned about.

enforce refuses pods; warn tells the client about pods and about what makes pods (Deployments, Jobs, …). Changing
enforce on a namespace tells of the pods that already break the new level. What breaks the audit level is noted for the
audit log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.admission.pod_security_checks import Level, details, evaluate, reasons
from kone.apimachinery.errors import FieldError, internal_error, invalid, invalid_value
from kone.apimachinery.objects import Object, annotations_of, controller_of, dig, labels_of, name_of

PREFIX = "pod-security.kubernetes.io/"
STRICTNESS: Mapping[Level, int] = {"privileged": 0, "baseline": 1, "restricted": 2}
PODS_CHECKED = 3000  # upstream's bound on a namespace's update
IGNORED_SUBRESOURCES = frozenset({"exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"})
NAMESPACES = ("", "namespaces")
PODS = ("", "pods")
TEMPLATES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("", "podtemplates"): ("template",),
    ("", "replicationcontrollers"): ("spec", "template"),
    ("apps", "deployments"): ("spec", "template"),
    ("apps", "replicasets"): ("spec", "template"),
    ("apps", "daemonsets"): ("spec", "template"),
    ("apps", "statefulsets"): ("spec", "template"),
    ("batch", "jobs"): ("spec", "template"),
    ("batch", "cronjobs"): ("spec", "jobTemplate", "spec", "template"),
}
_VERSION = re.compile(r"v1\.(0|[1-9][0-9]*)")


class Bar(NamedTuple):
    """A level at a version; minor None is the latest."""

    level: Level = "privileged"
    minor: int | None = None

    def __str__(self) -> str:
        return f"{self.level}:{'latest' if self.minor is None else f'v1.{self.minor}'}"


class Policy(NamedTuple):
    enforce: Bar
    audit: Bar
    warn: Bar
    errors: list[FieldError]


class PodSecurity(Plugin):
    name = "PodSecurity"
    resources = frozenset({NAMESPACES, PODS, *TEMPLATES})
    subresources = None

    def __init__(self, caches: Caches) -> None:
        self._namespaces = caches.of(*NAMESPACES)
        self._pods = caches.of(*PODS)

    def handles(self, a: Attributes) -> bool:
        if not super().handles(a):
            return False
        return a.subresource not in IGNORED_SUBRESOURCES if a.group_resource == PODS else not a.subresource

    async def validate(self, a: Attributes) -> None:
        if a.group_resource == NAMESPACES:
            self._namespace(a)
        elif a.group_resource == PODS:
            if a.operation == "CREATE" or _images_changed(a.object, a.old or {}):
                self._pod(a)
        else:
            self._template(a)

    def _namespace(self, a: Attributes) -> None:
        new = policy_of(labels_of(a.object))
        if a.operation == "CREATE":
            if new.errors:
                raise invalid(a.kind.group_kind, name_of(a.object), new.errors)
            return
        old = policy_of(labels_of(a.old or {}))
        if new.errors and new.errors != old.errors:
            raise invalid(a.kind.group_kind, a.name, new.errors)
        is_relaxed = (
            new.enforce.minor == old.enforce.minor and STRICTNESS[new.enforce.level] <= STRICTNESS[old.enforce.level]
        )
        if new.enforce.level != "privileged" and not is_relaxed:
            for warning in self._violations(name_of(a.object), new.enforce):
                _warn(a, warning)

    def _violations(self, namespace: str, bar: Bar) -> list[str]:
        """What the namespace's pods break of the level, as warnings: a line for each way, with the pods counted."""
        pods = _one_of_each_controller_first([entry.obj for entry in self._pods.list(namespace)])
        by_reasons: dict[str, list[str]] = {}
        for pod in pods[:PODS_CHECKED]:
            findings = evaluate(bar.level, bar.minor, annotations_of(pod), pod.get("spec") or {})
            if findings:
                by_reasons.setdefault(reasons(findings), []).append(name_of(pod))
        warnings = []
        if len(pods) > PODS_CHECKED:
            warnings.append(
                f"new PodSecurity enforce level only checked against the first {PODS_CHECKED} "
                f"of {len(pods)} existing pods"
            )
        if by_reasons:
            warnings.append(
                f'existing pods in namespace "{namespace}" violate the new PodSecurity enforce level "{bar}"'
            )
        return warnings + sorted(_pod_line(names, why) for why, names in by_reasons.items())

    def _pod(self, a: Attributes) -> None:
        policy = self._policy_for(a)
        spec, annotations = a.object.get("spec") or {}, annotations_of(a.object)
        a.annotate(f"{PREFIX}enforce-policy", str(policy.enforce))
        _audit(a, policy.audit, annotations, spec)
        findings = evaluate(policy.enforce.level, policy.enforce.minor, annotations, spec)
        if findings:
            raise a.refuse(f'violates PodSecurity "{policy.enforce}": {details(findings)}')
        self._warn_of(a, policy.warn, annotations, spec)

    def _template(self, a: Attributes) -> None:
        template = dig(a.obj, *TEMPLATES[a.group_resource])
        if template:
            policy = self._policy_for(a)
            _audit(a, policy.audit, annotations_of(template), template.get("spec") or {})
            self._warn_of(a, policy.warn, annotations_of(template), template.get("spec") or {})

    def _warn_of(self, a: Attributes, bar: Bar, annotations: Mapping[str, str], spec: Object) -> None:
        if findings := evaluate(bar.level, bar.minor, annotations, spec):
            _warn(a, f'would violate PodSecurity "{bar}": {details(findings)}')

    def _policy_for(self, a: Attributes) -> Policy:
        entry = self._namespaces.get("", a.namespace)
        if entry is None:
            raise internal_error(f'failed to lookup namespace "{a.namespace}"')
        return policy_of(labels_of(entry.obj))


def policy_of(labels: Mapping[str, str]) -> Policy:
    """What a namespace's labels ask for. A wrong enforce label enforces the strictest level, a wrong warn label warns
    of nothing; both are among the errors."""
    errors: list[FieldError] = []
    enforce, enforce_is_given = _bar(labels, "enforce", errors)
    audit, _ = _bar(labels, "audit", errors)
    warn, _ = _bar(labels, "warn", errors)
    if f"{PREFIX}warn" not in labels and enforce_is_given and STRICTNESS[enforce.level] > STRICTNESS[warn.level]:
        minor = warn.minor if f"{PREFIX}warn-version" in labels else enforce.minor
        warn = Bar(enforce.level, minor)
    return Policy(enforce, audit, warn, errors)


def _bar(labels: Mapping[str, str], mode: str, errors: list[FieldError]) -> tuple[Bar, bool]:
    """(the level and version of a mode, whether a valid level is given)."""
    level: Level = "privileged"
    is_given = False
    minor: int | None = None
    key = PREFIX + mode
    if (text := labels.get(key)) is not None:
        found = next((known for known in STRICTNESS if known == text), None)
        if found is None:
            errors.append(_wrong(key, text, f"must be one of {', '.join(STRICTNESS)}"))
            level = "restricted" if mode == "enforce" else "privileged"
        else:
            level, is_given = found, True
    key = f"{PREFIX}{mode}-version"
    if (text := labels.get(key)) is not None and text != "latest":
        match = _VERSION.fullmatch(text)
        if match is None:
            errors.append(_wrong(key, text, 'must be "latest" or "v1.x"'))
        else:
            minor = int(match[1])
    return Bar(level, minor), is_given


def _wrong(label: str, value: str, why: str) -> FieldError:
    return invalid_value(f"metadata.labels[{label}]", value, why)


def _audit(a: Attributes, bar: Bar, annotations: Mapping[str, str], spec: Object) -> None:
    if findings := evaluate(bar.level, bar.minor, annotations, spec):
        a.annotate(f"{PREFIX}audit-violations", f'would violate PodSecurity "{bar}": {details(findings)}')


def _warn(a: Attributes, text: str) -> None:
    if text not in a.warnings:
        a.warnings.append(text)


def _pod_line(names: Iterable[str], why: str) -> str:
    first, *others = sorted(names)
    if not others:
        return f"{first}: {why}"
    return f"{first} (and {len(others)} other {'pod' if len(others) == 1 else 'pods'}): {why}"


def _one_of_each_controller_first(pods: list[Object]) -> list[Object]:
    """Pods of one controller look alike: when not all can be checked, one of each goes before its siblings."""
    seen: set[str] = set()
    first: list[Object] = []
    siblings: list[Object] = []
    for pod in pods:
        controller = controller_of(pod)
        if controller is None or controller["uid"] not in seen:
            first.append(pod)
        else:
            siblings.append(pod)
        if controller is not None:
            seen.add(controller["uid"])
    return first + siblings


def _images_changed(new: Object, old: Object) -> bool:
    """Whether an update of a pod could matter: another image, or other containers."""

    def images(pod: Object, kind: str) -> list[Any]:
        return [(c.get("name"), c.get("image")) for c in dig(pod, "spec", kind, default=())]

    return any(images(new, kind) != images(old, kind) for kind in ("initContainers", "containers")) or any(
        entry not in images(old, "ephemeralContainers") for entry in images(new, "ephemeralContainers")
    )
