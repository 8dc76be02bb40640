"""PodSecurity's defaults and exemptions."""

from __future__ import annotations

from typing import Any

import pytest

from kone.admission import pod_security_policy
from kone.admission.pod_security import PodSecurity
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.kinds import NAMESPACES
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from tests.admission.support import ANN, admit, pod, refusal, write
from tests.memory_caches import MemoryCaches


@pytest.fixture
def caches() -> MemoryCaches:
    return MemoryCaches()


def put_namespace(caches: MemoryCaches, name: str = "ns", **annotations: str) -> None:
    meta = {"name": name, "annotations": {f"scheduler.alpha.kubernetes.io/{k}": v for k, v in annotations.items()}}
    caches.put(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})


STRICT = """
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline, enforce-version: v1.30, warn: restricted}
    exemptions: {namespaces: [kube-system], usernames: [ann], runtimeClasses: [vm]}
"""
PRIVILEGED = [{"name": "c", "image": "i", "securityContext": {"privileged": True}}]
BOB = User("bob")


async def test_defaults_hold_where_a_namespace_says_nothing(caches: MemoryCaches) -> None:
    put_namespace(caches)
    plugin = PodSecurity(caches, pod_security_policy.parse(STRICT))
    error = await refusal(plugin, write("CREATE", pod(containers=PRIVILEGED), user=BOB))
    assert 'violates PodSecurity "baseline:v1.30": privileged' in str(error)
    a = await admit(plugin, write("CREATE", pod(), user=BOB))
    assert a.warnings[0].startswith('would violate PodSecurity "restricted:latest"')


@pytest.mark.parametrize(
    ("namespace", "user", "spec", "why"),
    [
        ("kube-system", BOB, {}, "namespace"),
        ("ns", ANN, {}, "user"),
        ("ns", BOB, {"runtimeClassName": "vm"}, "runtimeClass"),
    ],
)
async def test_who_is_exempt_is_noted(
    caches: MemoryCaches, namespace: str, user: User, spec: dict[str, Any], why: str
) -> None:
    put_namespace(caches, namespace)
    plugin = PodSecurity(caches, pod_security_policy.parse(STRICT))
    p = pod(namespace=namespace, containers=PRIVILEGED, **spec)
    a = await admit(plugin, write("CREATE", p, namespace=namespace, user=user))
    assert a.annotations == {"pod-security.kubernetes.io/exempt": why}


async def test_labels_of_an_exempt_namespace_are_told_to_be_ignored(caches: MemoryCaches) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "baseline"}
    namespace: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "labels": labels}}
    a = write("CREATE", namespace, NAMESPACES, namespace="", user=BOB)
    await admit(PodSecurity(caches, pod_security_policy.parse(STRICT)), a)
    assert a.warnings == [
        'namespace "kube-system" is exempt from Pod Security, and the policy (enforce=restricted:v1.30, '
        "warn=baseline:latest) will be ignored"
    ]


def test_a_wrong_pod_security_configuration_is_told() -> None:
    text = """{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration,
               defaults: {enforce: strict, audit-version: "1"}, exemptions: {usernames: [""], namespaces: [a, a]}}"""
    with pytest.raises(ConfigFileError) as caught:
        pod_security_policy.parse(text)
    assert str(caught.value) == (
        '[defaults.enforce: Invalid value: "strict": must be one of privileged, baseline, restricted, '
        'defaults.audit-version: Invalid value: "1": must be "latest" or "v1.x", '
        'exemptions.namespaces[1]: Duplicate value: "a", '
        'exemptions.usernames[0]: Invalid value: "": username must not be empty]'
    )
