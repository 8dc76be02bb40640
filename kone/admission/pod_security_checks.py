"""The Pod Security Standards: what baseline and restricted forbid, each check as upstream versions and words it.

A check is a function from a pod's (annotations, spec) to None, or to a Finding. LEVELS tells which run from which
minor version on; a restricted check may stand in for the baseline check it makes stricter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.pod_references import containers_of

Level = Literal["privileged", "baseline", "restricted"]
LATEST_MINOR = 37


class Finding(NamedTuple):
    reason: str
    detail: str


Annotations = Mapping[str, str]
Run = Callable[[Annotations, Object], Finding | None]


@dataclass(frozen=True, slots=True)
class Check:
    """`versions`: (first minor version, what runs from there on), in order."""

    id: str
    level: Level
    versions: tuple[tuple[int, Run], ...]
    overrides: str = ""  # the baseline check that this restricted one replaces


def evaluate(level: Level, minor: int | None, annotations: Annotations, spec: Object) -> list[Finding]:
    """What the pod does that the level forbids; `minor` is the policy's version, None the latest."""
    if level == "privileged":
        return []
    version = LATEST_MINOR if minor is None else min(minor, LATEST_MINOR)
    findings = (run(annotations, spec) for run in _checks_of(level, version))
    return [finding for finding in findings if finding is not None]


def reasons(findings: Iterable[Finding]) -> str:
    return ", ".join(finding.reason for finding in findings)


def details(findings: Iterable[Finding]) -> str:
    return ", ".join(f"{f.reason} ({f.detail})" if f.detail else f.reason for f in findings)


@cache
def _checks_of(level: Level, minor: int) -> tuple[Run, ...]:
    """Baseline checks by name, then restricted ones by name."""
    baseline = sorted((check for check in CHECKS if check.level == "baseline"), key=lambda check: check.id)
    restricted = sorted((check for check in CHECKS if check.level == "restricted"), key=lambda check: check.id)
    chosen = baseline if level == "baseline" else [*baseline, *restricted]
    active = {check.id: run for check in chosen if (run := _at(check, minor)) is not None}
    replaced = {check.overrides for check in chosen if check.id in active}
    return tuple(run for check_id, run in active.items() if check_id not in replaced)


def _at(check: Check, minor: int) -> Run | None:
    return next((run for first, run in reversed(check.versions) if minor >= first), None)


# -- wording -----------------------------------------------------------------------------------------------------


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)


def _plural(word: str, count: int, many: str = "") -> str:
    return word if count == 1 else many or word + "s"


def _containers(names: Sequence[str]) -> str:
    return f"{_plural('container', len(names))} {_quoted(names)}"


def _setters(pod: bool, containers: Sequence[str]) -> str:
    """Who set something: "pod", "container "a"", or both."""
    return " and ".join([*(["pod"] if pod else []), *([_containers(containers)] if containers else [])])


def _contexts(spec: Object) -> Iterator[tuple[str, Object]]:
    """(name, security context) of every container."""
    for container in containers_of(spec):
        yield container.get("name", ""), container.get("securityContext") or {}


def _pod_context(spec: Object) -> Object:
    return spec.get("securityContext") or {}


def _in_user_namespace(spec: Object) -> bool:
    return spec.get("hostUsers") is False


def _is_windows(spec: Object) -> bool:
    return bool(dig(spec, "os", "name") == "windows")


def _linux_only(run: Run) -> Run:
    return lambda annotations, spec: None if _is_windows(spec) else run(annotations, spec)


def _not_in_user_namespace(run: Run) -> Run:
    return lambda annotations, spec: None if _in_user_namespace(spec) else run(annotations, spec)


# -- baseline ----------------------------------------------------------------------------------------------------

_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"


def _app_armor(annotations: Annotations, spec: Object) -> Finding | None:
    allowed = ("RuntimeDefault", "Localhost")
    bad_values: set[str] = set()
    pod_type = dig(_pod_context(spec), "appArmorProfile", "type")
    pod_is_bad = pod_type is not None and pod_type not in allowed
    if pod_is_bad:
        bad_values.add(pod_type)
    bad: list[str] = []
    for name, context in _contexts(spec):
        kind = dig(context, "appArmorProfile", "type")
        if kind is not None and kind not in allowed:
            bad.append(name)
            bad_values.add(kind)
    forbidden = sorted(
        f"{key}={go_quote(value)}"
        for key, value in annotations.items()
        if key.startswith(_APPARMOR_ANNOTATION)
        and not (not value or value == "runtime/default" or value.startswith("localhost/"))
    )
    setters = [_setters(pod_is_bad, bad)] if pod_is_bad or bad else []
    if forbidden:
        setters.append(_plural("annotation", len(forbidden)))
    if not setters:
        return None
    values = [*sorted(bad_values), *forbidden]
    reason = f"forbidden AppArmor {_plural('profile', len(values))}"
    return Finding(reason, f"{' and '.join(setters)} must not set AppArmor profile type to {_quoted(values)}")


_BASELINE_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)


def _added_capabilities(spec: Object, allowed: frozenset[str]) -> tuple[list[str], list[str]]:
    """(containers that add others than `allowed`, what they add)."""
    bad: list[str] = []
    added: set[str] = set()
    for name, context in _contexts(spec):
        more = {c for c in dig(context, "capabilities", "add", default=()) if c not in allowed}
        if more:
            bad.append(name)
            added |= more
    return bad, sorted(added)


def _capabilities_baseline(_: Annotations, spec: Object) -> Finding | None:
    bad, added = _added_capabilities(spec, _BASELINE_CAPABILITIES)
    if not bad:
        return None
    detail = f"{_containers(bad)} must not include {_quoted(added)} in securityContext.capabilities.add"
    return Finding("non-default capabilities", detail)


def _host_namespaces(_: Annotations, spec: Object) -> Finding | None:
    used = [f"{key}=true" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    return Finding("host namespaces", ", ".join(used)) if used else None


def _host_path_volumes(_: Annotations, spec: Object) -> Finding | None:
    names = [volume.get("name", "") for volume in spec.get("volumes") or () if volume.get("hostPath") is not None]
    return Finding("hostPath volumes", f"{_plural('volume', len(names))} {_quoted(names)}") if names else None


def _host_ports(_: Annotations, spec: Object) -> Finding | None:
    bad: list[str] = []
    ports: set[str] = set()
    for container in containers_of(spec):
        used = {str(port["hostPort"]) for port in container.get("ports") or () if port.get("hostPort")}
        if used:
            bad.append(container.get("name", ""))
            ports |= used
    if not bad:
        return None
    verb, noun = _plural("uses", len(bad), "use"), _plural("hostPort", len(ports))
    return Finding("hostPort", f"{_containers(bad)} {verb} {noun} {', '.join(sorted(ports))}")


def _host_probes(_: Annotations, spec: Object) -> Finding | None:
    bad: set[str] = set()
    hosts: set[str] = set()
    for container in containers_of(spec):
        handlers = [container.get(key) for key in ("livenessProbe", "readinessProbe", "startupProbe")]
        handlers += [dig(container, "lifecycle", key) for key in ("postStart", "preStop")]
        found = {dig(handler, kind, "host") for handler in handlers for kind in ("httpGet", "tcpSocket")}
        if named := {host for host in found if host}:
            bad.add(container.get("name", ""))
            hosts |= named
    if not bad:
        return None
    verb, noun = _plural("uses", len(bad), "use"), _plural("probe or lifecycle host", len(hosts))
    return Finding("probe or lifecycle host", f"{_containers(sorted(bad))} {verb} {noun} {_quoted(sorted(hosts))}")


def _privileged(_: Annotations, spec: Object) -> Finding | None:
    bad = [name for name, context in _contexts(spec) if context.get("privileged")]
    return Finding("privileged", f"{_containers(bad)} must not set securityContext.privileged=true") if bad else None


def _proc_mount(_: Annotations, spec: Object) -> Finding | None:
    kinds = [(name, context.get("procMount")) for name, context in _contexts(spec)]
    bad = [(name, kind) for name, kind in kinds if kind is not None and kind != "Default"]
    if not bad:
        return None
    values = _quoted(sorted({str(kind) for _, kind in bad}))
    return Finding(
        "procMount", f"{_containers([name for name, _ in bad])} must not set securityContext.procMount to {values}"
    )


def _se_linux(*more: str) -> Run:
    allowed = frozenset({"", "container_t", "container_init_t", "container_kvm_t", *more})

    def run(_: Annotations, spec: Object) -> Finding | None:
        kinds: set[str] = set()
        fields: set[str] = set()

        def is_bad(options: Any) -> bool:
            if options is None:
                return False
            kind = options.get("type", "")
            set_fields = {key for key in ("user", "role") if options.get(key)}
            if kind not in allowed:
                kinds.add(kind)
            fields.update(set_fields)
            return kind not in allowed or bool(set_fields)

        pod = is_bad(_pod_context(spec).get("seLinuxOptions"))
        bad = [name for name, context in _contexts(spec) if is_bad(context.get("seLinuxOptions"))]
        if not pod and not bad:
            return None
        data = [f"{_plural('type', len(kinds))} {_quoted(sorted(kinds))}"] if kinds else []
        data += [f"{key} may not be set" for key in ("user", "role") if key in fields]
        who = _setters(pod, bad)
        return Finding("seLinuxOptions", f"{who} set forbidden securityContext.seLinuxOptions: {'; '.join(data)}")

    return run


_SECCOMP_POD_ANNOTATION = "seccomp.security.alpha.kubernetes.io/pod"
_SECCOMP_CONTAINER_ANNOTATION = "container.seccomp.security.alpha.kubernetes.io/"
_SECCOMP_TYPES = ("RuntimeDefault", "Localhost")


def _seccomp_annotations(annotations: Annotations, spec: Object) -> Finding | None:
    keys = [_SECCOMP_POD_ANNOTATION]
    keys += [_SECCOMP_CONTAINER_ANNOTATION + name for name, _ in _contexts(spec)]

    def is_good(value: str) -> bool:
        return value in ("runtime/default", "docker/default") or value.startswith("localhost/")

    found = {f"{k}={go_quote(annotations[k])}" for k in keys if k in annotations and not is_good(annotations[k])}
    if not found:
        return None
    return Finding("seccompProfile", f"forbidden {_plural('annotation', len(found))} {', '.join(sorted(found))}")


def _seccomp_bad_values(spec: Object) -> tuple[Finding | None, bool, list[str]]:
    """(what is set to a bad value, whether the pod sets a good one, containers that set none)."""
    kind = dig(_pod_context(spec), "seccompProfile", "type")
    pod_is_set = _pod_context(spec).get("seccompProfile") is not None
    pod_is_bad = pod_is_set and kind not in _SECCOMP_TYPES
    values = {str(kind)} if pod_is_bad else set()
    bad: list[str] = []
    unset: list[str] = []
    for name, context in _contexts(spec):
        profile = context.get("seccompProfile")
        if profile is None:
            unset.append(name)
        elif profile.get("type") not in _SECCOMP_TYPES:
            bad.append(name)
            values.add(str(profile.get("type", "")))
    finding = None
    if pod_is_bad or bad:
        who = _setters(pod_is_bad, bad)
        detail = f"{who} must not set securityContext.seccompProfile.type to {_quoted(sorted(values))}"
        finding = Finding("seccompProfile", detail)
    return finding, pod_is_set and not pod_is_bad, unset


def _seccomp_baseline(_: Annotations, spec: Object) -> Finding | None:
    return _seccomp_bad_values(spec)[0]


_SYSCTLS = (
    (
        0,
        (
            "kernel.shm_rmid_forced",
            "net.ipv4.ip_local_port_range",
            "net.ipv4.tcp_syncookies",
            "net.ipv4.ping_group_range",
            "net.ipv4.ip_unprivileged_port_start",
        ),
    ),
    (27, ("net.ipv4.ip_local_reserved_ports",)),
    (
        29,
        (
            "net.ipv4.tcp_keepalive_time",
            "net.ipv4.tcp_fin_timeout",
            "net.ipv4.tcp_keepalive_intvl",
            "net.ipv4.tcp_keepalive_probes",
        ),
    ),
    (32, ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")),
    (37, ("net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat")),
)


def _sysctls(minor: int) -> Run:
    allowed = frozenset(name for first, names in _SYSCTLS if first <= minor for name in names)

    def run(_: Annotations, spec: Object) -> Finding | None:
        names = [sysctl.get("name", "") for sysctl in _pod_context(spec).get("sysctls") or ()]
        bad = [name for name in names if name not in allowed]
        return Finding("forbidden sysctls", ", ".join(bad)) if bad else None

    return run


def _windows_host_process(_: Annotations, spec: Object) -> Finding | None:
    def is_set(context: Object) -> bool:
        return bool(dig(context, "windowsOptions", "hostProcess"))

    pod, bad = is_set(_pod_context(spec)), [name for name, context in _contexts(spec) if is_set(context)]
    if not pod and not bad:
        return None
    detail = f"{_setters(pod, bad)} must not set securityContext.windowsOptions.hostProcess=true"
    return Finding("hostProcess", detail)


# -- restricted --------------------------------------------------------------------------------------------------


def _privilege_escalation(_: Annotations, spec: Object) -> Finding | None:
    bad = [name for name, context in _contexts(spec) if context.get("allowPrivilegeEscalation") is not False]
    if not bad:
        return None
    detail = f"{_containers(bad)} must set securityContext.allowPrivilegeEscalation=false"
    return Finding("allowPrivilegeEscalation != false", detail)


def _capabilities_restricted(_: Annotations, spec: Object) -> Finding | None:
    keeping = [n for n, context in _contexts(spec) if "ALL" not in dig(context, "capabilities", "drop", default=())]
    adding, added = _added_capabilities(spec, frozenset({"NET_BIND_SERVICE"}))
    parts = []
    if keeping:
        parts.append(f'{_containers(keeping)} must set securityContext.capabilities.drop=["ALL"]')
    if adding:
        parts.append(f"{_containers(adding)} must not include {_quoted(added)} in securityContext.capabilities.add")
    return Finding("unrestricted capabilities", "; ".join(parts)) if parts else None


_RESTRICTED_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)


def _restricted_volumes(_: Annotations, spec: Object) -> Finding | None:
    bad: list[str] = []
    kinds: set[str] = set()
    for volume in spec.get("volumes") or ():
        sources = [key for key, value in volume.items() if key != "name" and value is not None]
        if not any(source in _RESTRICTED_VOLUMES for source in sources):
            bad.append(volume.get("name", ""))
            kinds.update(sources[:1] or ["unknown"])
    if not bad:
        return None
    verb, noun = _plural("uses", len(bad), "use"), _plural("restricted volume type", len(kinds))
    detail = f"{_plural('volume', len(bad))} {_quoted(bad)} {verb} {noun} {_quoted(sorted(kinds))}"
    return Finding("restricted volume types", detail)


def _run_as_non_root(_: Annotations, spec: Object) -> Finding | None:
    pod = _pod_context(spec).get("runAsNonRoot")
    wanted = [(name, context.get("runAsNonRoot")) for name, context in _contexts(spec)]
    bad = [name for name, value in wanted if value is False]
    if pod is False or bad:
        detail = f"{_setters(pod is False, bad)} must not set securityContext.runAsNonRoot=false"
        return Finding("runAsNonRoot != true", detail)
    unset = [name for name, value in wanted if value is None]
    if unset and not pod:
        detail = f"pod or {_containers(unset)} must set securityContext.runAsNonRoot=true"
        return Finding("runAsNonRoot != true", detail)
    return None


def _run_as_user(_: Annotations, spec: Object) -> Finding | None:
    def is_root(context: Object) -> bool:
        return context.get("runAsUser") == 0

    pod, bad = is_root(_pod_context(spec)), [name for name, context in _contexts(spec) if is_root(context)]
    if not pod and not bad:
        return None
    return Finding("runAsUser=0", f"{_setters(pod, bad)} must not set runAsUser=0")


def _seccomp_restricted(_: Annotations, spec: Object) -> Finding | None:
    finding, pod_is_good, unset = _seccomp_bad_values(spec)
    if finding is not None or pod_is_good or not unset:
        return finding
    detail = (
        f'pod or {_containers(unset)} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
    )
    return Finding("seccompProfile", detail)


CHECKS: tuple[Check, ...] = (
    Check("appArmorProfile", "baseline", ((0, _app_armor),)),
    Check("capabilities_baseline", "baseline", ((0, _capabilities_baseline),)),
    Check("hostNamespaces", "baseline", ((0, _host_namespaces),)),
    Check("hostPathVolumes", "baseline", ((0, _host_path_volumes),)),
    Check("hostPorts", "baseline", ((0, _host_ports),)),
    Check("hostProbesAndHostLifecycle", "baseline", ((34, _host_probes),)),
    Check("privileged", "baseline", ((0, _privileged),)),
    Check("procMount", "baseline", ((0, _proc_mount), (35, _not_in_user_namespace(_proc_mount)))),
    Check("seLinuxOptions", "baseline", ((0, _se_linux()), (31, _se_linux("container_engine_t")))),
    Check("seccompProfile_baseline", "baseline", ((0, _seccomp_annotations), (19, _seccomp_baseline))),
    Check("sysctls", "baseline", tuple((minor, _sysctls(minor)) for minor, _ in _SYSCTLS)),
    Check("windowsHostProcess", "baseline", ((0, _windows_host_process),)),
    Check(
        "allowPrivilegeEscalation",
        "restricted",
        ((8, _privilege_escalation), (25, _linux_only(_privilege_escalation))),
    ),
    Check(
        "capabilities_restricted",
        "restricted",
        ((22, _capabilities_restricted), (25, _linux_only(_capabilities_restricted))),
        overrides="capabilities_baseline",
    ),
    Check("procMount_restricted", "restricted", ((35, _proc_mount),), overrides="procMount"),
    Check("restrictedVolumes", "restricted", ((0, _restricted_volumes),), overrides="hostPathVolumes"),
    Check("runAsNonRoot", "restricted", ((0, _run_as_non_root), (35, _not_in_user_namespace(_run_as_non_root)))),
    Check("runAsUser", "restricted", ((23, _run_as_user), (35, _not_in_user_namespace(_run_as_user)))),
    Check(
        "seccompProfile_restricted",
        "restricted",
        ((19, _seccomp_restricted), (25, _linux_only(_seccomp_restricted))),
        overrides="seccompProfile_baseline",
    ),
)
