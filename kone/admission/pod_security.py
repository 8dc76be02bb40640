"""PodSecurity: a namespace's labels say which Pod Security Standard its pods must keep, or are warned about.

enforce refuses pods; warn tells the client about pods and about what makes pods (Deployments, Jobs, …). Changing
enforce on a namespace tells of the pods that already break the new level. What breaks the audit level is noted for the
audit log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.admission.pod_security_checks import details, evaluate, reasons
from kone.admission.pod_security_policy import (
    MODES,
    NOTHING_CONFIGURED,
    PREFIX,
    STRICTNESS,
    Bar,
    Configuration,
    Policy,
    policy_of,
)
from kone.apimachinery.errors import aggregate, go_quote, internal_error, invalid
from kone.apimachinery.objects import Object, annotations_of, controller_of, dig, labels_of, name_of

PODS_CHECKED = 3000  # upstream's bound on a namespace's update
IGNORED_SUBRESOURCES = frozenset({"exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"})
EXEMPT = f"{PREFIX}exempt"
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


class PodSecurity(Plugin):
    name = "PodSecurity"
    resources = frozenset({NAMESPACES, PODS, *TEMPLATES})
    subresources = None

    def __init__(self, caches: Caches, configuration: Configuration = NOTHING_CONFIGURED) -> None:
        self._configuration = configuration
        self._namespaces = caches.of(*NAMESPACES)
        self._pods = caches.of(*PODS)

    def handles(self, a: Attributes) -> bool:
        if not super().handles(a):
            return False
        return a.subresource not in IGNORED_SUBRESOURCES if a.group_resource == PODS else not a.subresource

    async def validate(self, a: Attributes) -> None:
        if a.group_resource == NAMESPACES:
            self._namespace(a)
        elif self._is_exempt(a):
            return
        elif a.group_resource == PODS:
            if a.operation == "CREATE" or _images_changed(a.object, a.old or {}):
                self._pod(a)
        else:
            self._template(a)

    def _is_exempt(self, a: Attributes) -> bool:
        """Whether the namespace or the user is; the audit log is told."""
        exempt = self._configuration
        if a.namespace in exempt.namespaces:
            a.annotate(EXEMPT, "namespace")
        elif a.user.name in exempt.usernames:
            a.annotate(EXEMPT, "user")
        else:
            return False
        return True

    def _runs_exempt(self, spec: Object) -> bool:
        return spec.get("runtimeClassName") in self._configuration.runtime_classes

    def _namespace(self, a: Attributes) -> None:
        new = self._policy(a.object)
        name = name_of(a.object)
        if a.operation == "CREATE":
            if new.errors:
                raise invalid(a.kind.group_kind, name, new.errors)
            if name in self._configuration.namespaces:
                self._warn_of_exemption(a, new)
            return
        old = self._policy(a.old or {})
        if new.errors and new.errors != old.errors:
            raise invalid(a.kind.group_kind, a.name, new.errors)
        bar, before = new.bars.enforce, old.bars.enforce
        if bar == before or bar.level == "privileged":
            return
        if bar.minor == before.minor and STRICTNESS[bar.level] <= STRICTNESS[before.level]:
            return
        if name in self._configuration.namespaces:
            self._warn_of_exemption(a, new)
            return
        for warning in self._violations(name, bar):
            a.warn(warning)

    def _warn_of_exemption(self, a: Attributes, policy: Policy) -> None:
        """Labels that ask for something are not heard."""
        if policy.bars.is_privileged or policy.bars.is_like(self._configuration.defaults):
            return
        labels = labels_of(a.object)
        asked = [
            f"{mode}={bar}"
            for mode, bar in zip(MODES, policy.bars, strict=True)
            if bar.level != "privileged" and (PREFIX + mode in labels or f"{PREFIX}{mode}-version" in labels)
        ]
        a.warn(
            f"namespace {go_quote(name_of(a.object))} is exempt from Pod Security, "
            f"and the policy ({', '.join(asked)}) will be ignored"
        )

    def _violations(self, namespace: str, bar: Bar) -> list[str]:
        """What the namespace's pods break of the level, as warnings: a line for each way, with the pods counted."""
        found = (entry.obj for entry in self._pods.list(namespace))
        pods = _one_of_each_controller_first([pod for pod in found if not self._runs_exempt(pod.get("spec") or {})])
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
        self._judge(a, policy, annotations_of(a.object), a.object.get("spec") or {}, enforced=policy.bars.enforce)

    def _template(self, a: Attributes) -> None:
        template = dig(a.obj, *TEMPLATES[a.group_resource])
        if not template:
            return
        policy = self._policy_for(a)
        if policy.errors or policy.bars.audit.level != "privileged" or policy.bars.warn.level != "privileged":
            self._judge(a, policy, annotations_of(template), template.get("spec") or {})

    def _judge(
        self, a: Attributes, policy: Policy, annotations: Mapping[str, str], spec: Object, enforced: Bar | None = None
    ) -> None:
        """Note what breaks the audit level, refuse what breaks the one that is enforced, warn of the rest."""
        bars = policy.bars
        if policy.errors or not bars.is_privileged:
            if self._runs_exempt(spec):
                a.annotate(EXEMPT, "runtimeClass")
                return
            if policy.errors:
                a.annotate(f"{PREFIX}error", f"Failed to parse policy: {aggregate(map(str, policy.errors))}")
        if enforced is not None:
            a.annotate(f"{PREFIX}enforce-policy", str(enforced))
        if findings := evaluate(bars.audit.level, bars.audit.minor, annotations, spec):
            a.annotate(f"{PREFIX}audit-violations", f'would violate PodSecurity "{bars.audit}": {details(findings)}')
        if enforced is not None and (findings := evaluate(enforced.level, enforced.minor, annotations, spec)):
            raise a.refuse(f'violates PodSecurity "{enforced}": {details(findings)}')
        if findings := evaluate(bars.warn.level, bars.warn.minor, annotations, spec):
            a.warn(f'would violate PodSecurity "{bars.warn}": {details(findings)}')

    def _policy_for(self, a: Attributes) -> Policy:
        entry = self._namespaces.get("", a.namespace)
        if entry is None:
            raise internal_error(f'failed to lookup namespace "{a.namespace}"')
        return self._policy(entry.obj)

    def _policy(self, namespace: Object) -> Policy:
        return policy_of(labels_of(namespace), self._configuration.defaults)


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
