"""The Pod Security Standards, level by level, in the words of upstream's warnings and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from kone.admission.pod_security import PodSecurity
from kone.admission.pod_security_checks import details, evaluate
from kone.admission.pod_security_policy import Bar, policy_of
from kone.apimachinery.kinds import DEPLOYMENTS, NAMESPACES, PODS
from kone.apimachinery.objects import Object
from tests.admission.support import admit, pod, refusal, write
from tests.memory_caches import MemoryCaches

GOOD_CONTEXT: Object = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
PLAIN = (
    'allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), '
    'unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), '
    'runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), '
    'seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or '
    '"Localhost")'
)


def container(name: str = "c", **context: Any) -> Object:
    return {"name": name, "image": "i", "securityContext": context}


def breaks(level: Any, spec: Object, minor: int | None = None, annotations: dict[str, str] | None = None) -> str:
    spec.setdefault("containers", [{"name": "c", "image": "i"}])
    return details(evaluate(level, minor, annotations or {}, spec))


@pytest.mark.parametrize(
    ("spec", "finding"),
    [
        ({}, ""),
        ({"hostNetwork": True, "hostPID": True}, "host namespaces (hostNetwork=true, hostPID=true)"),
        (
            {"containers": [container("a", privileged=True), container("b", privileged=True)]},
            'privileged (containers "a", "b" must not set securityContext.privileged=true)',
        ),
        (
            {"containers": [container(capabilities={"add": ["NET_RAW", "CHOWN", "SYS_ADMIN"]})]},
            'non-default capabilities (container "c" must not include "NET_RAW", "SYS_ADMIN" in '
            "securityContext.capabilities.add)",
        ),
        (
            {"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "emptyDir": {}}]},
            'hostPath volumes (volume "v")',
        ),
        (
            {"containers": [{"name": "c", "ports": [{"hostPort": 80}, {"hostPort": 8080}, {"containerPort": 1}]}]},
            'hostPort (container "c" uses hostPorts 80, 8080)',
        ),
        (
            {"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "h"}}}]},
            'probe or lifecycle host (container "c" uses probe or lifecycle host "h")',
        ),
        (
            {"containers": [container(procMount="Unmasked")]},
            'procMount (container "c" must not set securityContext.procMount to "Unmasked")',
        ),
        (
            {"securityContext": {"seLinuxOptions": {"type": "evil_t", "user": "u"}}},
            'seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type "evil_t"; user may not be set)',
        ),
        (
            {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
            'seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")',
        ),
        ({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}, "forbidden sysctls (kernel.msgmax)"),
        (
            {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
            'forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined")',
        ),
        (
            {"securityContext": {"windowsOptions": {"hostProcess": True}}},
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ],
)
def test_what_baseline_forbids(spec: Object, finding: str) -> None:
    assert breaks("baseline", spec) == finding


@pytest.mark.parametrize(
    ("spec", "finding"),
    [
        ({}, PLAIN),
        ({"containers": [container(**GOOD_CONTEXT)]}, ""),
        (
            {"containers": [container(**{**GOOD_CONTEXT, "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}})]},
            'unrestricted capabilities (container "c" must not include "CHOWN" in securityContext.capabilities.add)',
        ),
        (
            {
                "containers": [container(**GOOD_CONTEXT)],
                "volumes": [{"name": "v", "nfs": {}}, {"name": "w", "secret": {}}],
            },
            'restricted volume types (volume "v" uses restricted volume type "nfs")',
        ),
        (
            {"containers": [container(**{**GOOD_CONTEXT, "runAsNonRoot": False, "runAsUser": 0})]},
            'runAsNonRoot != true (container "c" must not set securityContext.runAsNonRoot=false), '
            'runAsUser=0 (container "c" must not set runAsUser=0)',
        ),
        (
            {
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "Localhost"}},
                "containers": [container(allowPrivilegeEscalation=False, capabilities={"drop": ["ALL"]})],
            },
            "",
        ),
    ],
)
def test_what_restricted_forbids(spec: Object, finding: str) -> None:
    assert breaks("restricted", spec) == finding


@pytest.mark.parametrize(
    ("level", "minor", "spec", "annotations", "is_forbidden"),
    [
        ("baseline", 33, {"containers": [{"name": "c", "livenessProbe": {"tcpSocket": {"host": "h"}}}]}, {}, False),
        ("baseline", 31, {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}, {}, True),
        ("baseline", 32, {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}, {}, False),
        ("baseline", 99, {"hostUsers": False, "containers": [container(procMount="Unmasked")]}, {}, False),
        ("baseline", 34, {"hostUsers": False, "containers": [container(procMount="Unmasked")]}, {}, True),
        ("baseline", 18, {}, {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}, True),
        ("baseline", 19, {}, {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}, False),
        ("baseline", None, {}, {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}, True),
        ("privileged", None, {"hostPID": True}, {}, False),
    ],
)
def test_a_policy_is_of_a_version(
    level: Any, minor: int | None, spec: Object, annotations: dict[str, str], is_forbidden: bool
) -> None:
    assert bool(breaks(level, spec, minor, annotations)) is is_forbidden


# -- the plugin --------------------------------------------------------------------------------------------------


def namespace(**labels: str) -> Object:
    named = {f"pod-security.kubernetes.io/{key.replace('_', '-')}": value for key, value in labels.items()}
    return {"kind": "Namespace", "metadata": {"name": "ns", "labels": named}}


class World:
    def __init__(self, **labels: str) -> None:
        self.caches = MemoryCaches()
        self.caches.put(NAMESPACES, namespace(**labels))
        self.plugin = PodSecurity(self.caches)


async def test_enforce_refuses_a_pod() -> None:
    error = await refusal(World(enforce="baseline").plugin, write("CREATE", pod(hostNetwork=True)))
    assert error.message == (
        'pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)'
    )


async def test_warn_tells_of_pods_and_of_what_makes_them() -> None:
    world = World(warn="restricted", enforce="privileged")
    warning = f'would violate PodSecurity "restricted:latest": {PLAIN}'
    assert (await admit(world.plugin, write("CREATE", pod()))).warnings == [warning]
    deployment = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": {"spec": pod()["spec"]}}}
    assert (await admit(world.plugin, write("CREATE", deployment, DEPLOYMENTS))).warnings == [warning]
    assert (await admit(world.plugin, write("UPDATE", deployment, DEPLOYMENTS, old=deployment))).warnings == [warning]


async def test_enforce_warns_of_what_makes_pods_too() -> None:
    deployment = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": {"spec": pod()["spec"]}}}
    admitted = await admit(World(enforce="restricted").plugin, write("CREATE", deployment, DEPLOYMENTS))
    assert admitted.warnings == [f'would violate PodSecurity "restricted:latest": {PLAIN}']


async def test_an_update_of_a_pod_matters_when_its_image_changes() -> None:
    world = World(enforce="restricted")
    old = pod()
    await admit(world.plugin, write("UPDATE", pod(terminationGracePeriodSeconds=1), old=old))
    changed = pod(containers=[{"name": "c", "image": "other"}])
    assert "violates PodSecurity" in (await refusal(world.plugin, write("UPDATE", changed, old=old))).message
    await admit(world.plugin, write("UPDATE", changed, PODS, old=old, subresource="status"))


@pytest.mark.parametrize(
    ("labels", "field", "why"),
    [
        ({"enforce": "loose"}, "enforce", '"loose": must be one of privileged, baseline, restricted'),
        ({"enforce_version": "1.2"}, "enforce-version", '"1.2": must be "latest" or "v1.x"'),
        ({"warn": "x"}, "warn", '"x": must be one of privileged, baseline, restricted'),
    ],
)
async def test_wrong_labels(labels: dict[str, str], field: str, why: str) -> None:
    new = namespace(**labels)
    change = write("UPDATE", new, NAMESPACES, old=namespace(), namespace="ns", kind="Namespace")
    error = await refusal(World().plugin, change)
    assert error.message == (
        f'Namespace "ns" is invalid: metadata.labels[pod-security.kubernetes.io/{field}]: Invalid value: {why}'
    )


async def test_a_stricter_namespace_tells_of_the_pods_that_break_it() -> None:
    world = World()
    world.caches.put(PODS, pod("a", containers=[container(privileged=True)]))
    world.caches.put(PODS, pod("b", hostNetwork=True), pod("b2", hostNetwork=True))
    change = write("UPDATE", namespace(enforce="baseline"), NAMESPACES, old=namespace(), kind="Namespace")
    assert (await admit(world.plugin, change)).warnings == [
        'existing pods in namespace "ns" violate the new PodSecurity enforce level "baseline:latest"',
        "a: privileged",
        "b (and 1 other pod): host namespaces",
    ]
    back = write("UPDATE", namespace(enforce="privileged"), NAMESPACES, old=namespace(enforce="baseline"))
    assert (await admit(world.plugin, back)).warnings == []


def test_warn_follows_a_stricter_enforce_unless_it_is_given() -> None:
    def bars(**labels: str) -> tuple[Bar, Bar]:
        policy = policy_of(namespace(**labels)["metadata"]["labels"])
        return policy.bars.enforce, policy.bars.warn

    strict = Bar("restricted", 30)
    assert bars(enforce="restricted", enforce_version="v1.30") == (strict, strict)
    assert bars(enforce="restricted", enforce_version="v1.30", warn="privileged") == (strict, Bar("privileged"))
