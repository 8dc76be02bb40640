"""What is added to a pod and what is refused: lifecycle, account, priority, tolerations, runtime class."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kone.admission.default_toleration_seconds import DefaultTolerationSeconds
from kone.admission.namespace_lifecycle import NamespaceLifecycle
from kone.admission.node_declared_features import NodeDeclaredFeatureValidator
from kone.admission.pod_resize_validator import PodResizeValidator
from kone.admission.priority import Priority
from kone.admission.runtime_class import RuntimeClass
from kone.admission.service_account import ServiceAccount
from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import CONFIGMAPS, GVR, NAMESPACES, NODES, PODS, PRIORITYCLASSES, SERVICEACCOUNTS
from kone.apimachinery.objects import Object
from tests.admission.support import admit, pod, refusal, write
from tests.memory_caches import MemoryCaches

CONFIG = {"kind": "ConfigMap", "metadata": {"name": "c"}}


@pytest.fixture
def caches() -> MemoryCaches:
    made = MemoryCaches()
    made.put(NAMESPACES, {"metadata": {"name": "ns"}, "status": {"phase": "Active"}})
    made.put(NAMESPACES, {"metadata": {"name": "ending"}, "status": {"phase": "Terminating"}})
    made.put(SERVICEACCOUNTS, {"metadata": {"name": "default", "namespace": "ns"}})
    return made


# -- NamespaceLifecycle ------------------------------------------------------------------------------------------


async def test_nothing_is_made_in_a_missing_namespace(caches: MemoryCaches) -> None:
    error = await refusal(NamespaceLifecycle(caches), write("CREATE", CONFIG, CONFIGMAPS, namespace="nowhere"))
    assert (error.code, error.message) == (404, 'namespaces "nowhere" not found')


async def test_nothing_is_made_in_an_ending_namespace(caches: MemoryCaches) -> None:
    error = await refusal(NamespaceLifecycle(caches), write("CREATE", CONFIG, CONFIGMAPS, namespace="ending"))
    assert error.message == (
        'configmaps "c" is forbidden: unable to create new content in namespace ending because it is being terminated'
    )
    assert error.details == {
        "name": "c",
        "kind": "configmaps",
        "causes": [
            {
                "reason": "NamespaceTerminating",
                "message": "namespace ending is being terminated",
                "field": "metadata.namespace",
            }
        ],
    }


@pytest.mark.parametrize("name", ["default", "kube-system", "kube-public"])
async def test_three_namespaces_never_end(caches: MemoryCaches, name: str) -> None:
    deletion = write("DELETE", None, NAMESPACES, name=name, namespace=name)
    error = await refusal(NamespaceLifecycle(caches), deletion)
    assert error.message == f'namespaces "{name}" is forbidden: this namespace may not be deleted'


async def test_what_exists_may_be_changed_and_deleted_and_reviews_leak_nothing(caches: MemoryCaches) -> None:
    plugin = NamespaceLifecycle(caches)
    await admit(plugin, write("UPDATE", CONFIG, CONFIGMAPS, old=CONFIG, namespace="ending"))
    await admit(plugin, write("DELETE", None, CONFIGMAPS, old=CONFIG, namespace="nowhere"))
    await admit(plugin, write("DELETE", None, NAMESPACES, name="kube-node-lease", namespace="kube-node-lease"))
    review = GVR("authorization.k8s.io", "v1", "localsubjectaccessreviews")
    await admit(plugin, write("CREATE", {"metadata": {}}, review, namespace="nowhere"))


# -- ServiceAccount ----------------------------------------------------------------------------------------------


@pytest.fixture
def account(caches: MemoryCaches) -> ServiceAccount:
    return ServiceAccount(caches, FakeClock())


async def test_a_pod_runs_as_default_with_its_token_mounted(account: ServiceAccount) -> None:
    made = pod(initContainers=[{"name": "i", "image": "i"}])
    spec = (await admit(account, write("CREATE", made))).object["spec"]
    assert (spec["serviceAccountName"], spec["serviceAccount"]) == ("default", "default")
    [volume] = spec["volumes"]
    assert volume["name"].startswith("kube-api-access-")
    assert len(volume["name"]) == len("kube-api-access-") + 5
    assert volume["projected"] == {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
            {
                "downwardAPI": {
                    "items": [
                        {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}, "path": "namespace"}
                    ]
                }
            },
        ],
        "defaultMode": 420,
    }
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["volumeMounts"] == [
            {"name": volume["name"], "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
        ]


async def test_a_mount_of_ones_own_is_kept(account: ServiceAccount) -> None:
    mine = [{"name": "mine", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]
    made = pod(containers=[{"name": "c", "volumeMounts": mine}], volumes=[{"name": "mine", "emptyDir": {}}])
    spec = (await admit(account, write("CREATE", made))).object["spec"]
    assert spec["volumes"] == [{"name": "mine", "emptyDir": {}}]
    assert spec["containers"][0]["volumeMounts"] == mine


@pytest.mark.parametrize(
    ("of_account", "of_pod", "mounted"),
    [(None, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
async def test_the_pods_word_goes_before_the_accounts(
    caches: MemoryCaches, account: ServiceAccount, of_account: bool | None, of_pod: bool | None, mounted: bool
) -> None:
    wanted = {} if of_account is None else {"automountServiceAccountToken": of_account}
    caches.put(SERVICEACCOUNTS, {"metadata": {"name": "sa", "namespace": "ns"}, **wanted})
    more: dict[str, Any] = {} if of_pod is None else {"automountServiceAccountToken": of_pod}
    spec = (await admit(account, write("CREATE", pod(serviceAccountName="sa", **more)))).object["spec"]
    assert ("volumes" in spec) is mounted


async def test_pull_secrets_come_from_the_account_unless_the_pod_has_its_own(
    caches: MemoryCaches, account: ServiceAccount
) -> None:
    caches.put(SERVICEACCOUNTS, {"metadata": {"name": "sa", "namespace": "ns"}, "imagePullSecrets": [{"name": "pull"}]})
    taken = (await admit(account, write("CREATE", pod(serviceAccountName="sa")))).object["spec"]
    assert taken["imagePullSecrets"] == [{"name": "pull"}]
    own = pod(serviceAccountName="sa", imagePullSecrets=[{"name": "mine"}])
    assert (await admit(account, write("CREATE", own))).object["spec"]["imagePullSecrets"] == [{"name": "mine"}]


async def test_a_missing_account(account: ServiceAccount) -> None:
    error = await refusal(account, write("CREATE", pod(serviceAccountName="none")))
    assert error.message == (
        'pods "p" is forbidden: error looking up service account ns/none: serviceaccount "none" not found'
    )


async def test_the_default_account_is_waited_for(caches: MemoryCaches, account: ServiceAccount) -> None:
    caches.of("", "serviceaccounts").remove("ns", "default")
    admission = asyncio.ensure_future(admit(account, write("CREATE", pod())))
    await asyncio.sleep(0)
    assert not admission.done()
    caches.put(SERVICEACCOUNTS, {"metadata": {"name": "default", "namespace": "ns"}})
    assert (await admission).object["spec"]["serviceAccountName"] == "default"


async def test_but_not_for_ever(caches: MemoryCaches) -> None:
    clock = FakeClock()
    caches.of("", "serviceaccounts").remove("ns", "default")
    admission = asyncio.ensure_future(refusal(ServiceAccount(caches, clock), write("CREATE", pod())))
    await clock.advance(2)
    assert "error looking up service account ns/default" in (await admission).message


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (
            {"volumes": [{"name": "v", "secret": {"secretName": "s2"}}]},
            'volume with secret.secretName="s2" is not allowed because service account lim does not reference '
            "that secret",
        ),
        (
            {
                "containers": [
                    {"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}]}
                ]
            },
            'container c with envVar E referencing secret.secretName="s2" is not allowed because service account lim '
            "does not reference that secret",
        ),
        (
            {"imagePullSecrets": [{"name": "s2"}]},
            'imagePullSecrets[0].name="s2" is not allowed because service account lim does not reference that '
            "imagePullSecret",
        ),
    ],
)
async def test_an_account_may_name_the_only_secrets_to_mount(
    caches: MemoryCaches, account: ServiceAccount, spec: Object, why: str
) -> None:
    annotations = {"kubernetes.io/enforce-mountable-secrets": "true"}
    meta = {"name": "lim", "namespace": "ns", "annotations": annotations}
    caches.put(SERVICEACCOUNTS, {"metadata": meta, "secrets": [{"name": "s1"}]})
    good = pod(serviceAccountName="lim", volumes=[{"name": "v", "secret": {"secretName": "s1"}}])
    await admit(account, write("CREATE", good))
    error = await refusal(account, write("CREATE", pod(serviceAccountName="lim", **spec)))
    assert error.message == f'pods "p" is forbidden: {why}'


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"serviceAccountName": "sa"}, "a mirror pod may not reference service accounts"),
        ({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}, "a mirror pod may not reference secrets"),
        (
            {"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
            "a mirror pod may not use ServiceAccountToken volume projections",
        ),
    ],
)
async def test_mirror_pods(account: ServiceAccount, spec: Object, why: str) -> None:
    mirror = pod(annotations={"kubernetes.io/config.mirror": "x"}, **spec)
    assert (await refusal(account, write("CREATE", mirror))).message == f'pods "p" is forbidden: {why}'


# -- Priority ----------------------------------------------------------------------------------------------------


@pytest.fixture
def priority(caches: MemoryCaches) -> Priority:
    caches.put(
        PRIORITYCLASSES, {"metadata": {"name": "high"}, "value": 500, "preemptionPolicy": "PreemptLowerPriority"}
    )
    caches.put(PRIORITYCLASSES, {"metadata": {"name": "calm"}, "value": 600, "preemptionPolicy": "Never"})
    return Priority(caches)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, (None, 0, "PreemptLowerPriority")),
        ({"priorityClassName": "high"}, ("high", 500, "PreemptLowerPriority")),
        ({"priorityClassName": "calm"}, ("calm", 600, "Never")),
        ({"priorityClassName": "high", "priority": 500}, ("high", 500, "PreemptLowerPriority")),
        ({"priority": 0}, (None, 0, "PreemptLowerPriority")),
    ],
)
async def test_priorities_are_resolved(priority: Priority, spec: Object, expected: tuple[Any, ...]) -> None:
    made = (await admit(priority, write("CREATE", pod(**spec)))).object["spec"]
    assert (made.get("priorityClassName"), made["priority"], made["preemptionPolicy"]) == expected


async def test_without_a_name_the_default_class_counts(caches: MemoryCaches, priority: Priority) -> None:
    caches.put(PRIORITYCLASSES, {"metadata": {"name": "usual"}, "value": 7, "globalDefault": True})
    made = (await admit(priority, write("CREATE", pod()))).object["spec"]
    assert (made["priorityClassName"], made["priority"]) == ("usual", 7)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"priorityClassName": "none"}, "no PriorityClass with name none was found"),
        (
            {"priorityClassName": "high", "priority": 7},
            "the integer value of priority (7) must not be provided in pod spec; priority admission controller "
            "computed 500 from the given PriorityClass name",
        ),
        (
            {"priorityClassName": "high", "preemptionPolicy": "Never"},
            "the string value of PreemptionPolicy (Never) must not be provided in pod spec; priority admission "
            "controller computed PreemptLowerPriority from the given PriorityClass name",
        ),
    ],
)
async def test_priorities_that_are_refused(priority: Priority, spec: Object, why: str) -> None:
    assert (await refusal(priority, write("CREATE", pod(**spec)))).message == f'pods "p" is forbidden: {why}'


async def test_there_is_one_default_class(caches: MemoryCaches, priority: Priority) -> None:
    caches.put(PRIORITYCLASSES, {"metadata": {"name": "usual"}, "value": 7, "globalDefault": True})
    second = {"kind": "PriorityClass", "metadata": {"name": "other"}, "value": 8, "globalDefault": True}
    error = await refusal(priority, write("CREATE", second, PRIORITYCLASSES, namespace=""))
    assert error.message.endswith("PriorityClass usual is already marked as default. Only one default can exist")
    same = {"kind": "PriorityClass", "metadata": {"name": "usual"}, "value": 7, "globalDefault": True}
    await admit(priority, write("UPDATE", same, PRIORITYCLASSES, old=same, namespace=""))


# -- DefaultTolerationSeconds ------------------------------------------------------------------------------------

NOT_READY = {
    "key": "node.kubernetes.io/not-ready",
    "operator": "Exists",
    "effect": "NoExecute",
    "tolerationSeconds": 300,
}
UNREACHABLE = {**NOT_READY, "key": "node.kubernetes.io/unreachable"}


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], [NOT_READY, UNREACHABLE]),
        ([{**NOT_READY, "tolerationSeconds": 5}], [UNREACHABLE]),
        ([{"key": "node.kubernetes.io/unreachable", "operator": "Exists"}], [NOT_READY]),
        ([{"operator": "Exists"}], []),
        (
            [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"}],
            [NOT_READY, UNREACHABLE],
        ),
    ],
)
async def test_default_tolerations(given: list[Object], added: list[Object]) -> None:
    made = pod(tolerations=list(given)) if given else pod()
    admitted = await admit(DefaultTolerationSeconds(), write("CREATE", made))
    assert admitted.object["spec"].get("tolerations", []) == given + added


# -- RuntimeClass ------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime_class(caches: MemoryCaches) -> RuntimeClass:
    sandbox = {
        "metadata": {"name": "sandbox"},
        "handler": "h",
        "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"kind": "vm"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
    }
    caches.put(GVR("node.k8s.io", "v1", "runtimeclasses"), sandbox)
    return RuntimeClass(caches)


async def test_a_runtime_class_brings_overhead_and_scheduling(runtime_class: RuntimeClass) -> None:
    spec = (await admit(runtime_class, write("CREATE", pod(runtimeClassName="sandbox")))).object["spec"]
    assert spec["overhead"] == {"cpu": "250m"}
    assert spec["nodeSelector"] == {"kind": "vm"}
    assert spec["tolerations"] == [{"key": "vm", "operator": "Exists"}]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"runtimeClassName": "none"}, 'pod rejected: RuntimeClass "none" not found'),
        (
            {"overhead": {"cpu": "1"}},
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
        (
            {"runtimeClassName": "sandbox", "overhead": {"cpu": "1"}},
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            {"runtimeClassName": "sandbox", "nodeSelector": {"kind": "metal"}},
            "conflict: runtimeClass.scheduling.nodeSelector[kind] = vm; pod.spec.nodeSelector[kind] = metal",
        ),
    ],
)
async def test_runtime_classes_that_do_not_fit(runtime_class: RuntimeClass, spec: Object, why: str) -> None:
    assert (await refusal(runtime_class, write("CREATE", pod(**spec), PODS))).message == f'pods "p" is forbidden: {why}'


# -- NodeDeclaredFeatureValidator -------------------------------------------------------------------------------------


async def test_a_pod_changes_only_as_its_node_understands() -> None:
    caches = MemoryCaches()
    validator = NodeDeclaredFeatureValidator(caches)

    def prepared(cpu: str, generation: int) -> Object:
        made = pod(nodeName="n1", initContainers=[{"name": "i", "resources": {"requests": {"cpu": cpu}}}])
        made["metadata"]["generation"] = generation
        return made

    request = write("UPDATE", prepared("2", 2), old=prepared("1", 1), subresource="resize")
    assert (await refusal(validator, request)).message == 'pods "p" is forbidden: node "n1" not found'

    caches.put(NODES, {"metadata": {"name": "n1"}, "status": {}})
    feature = "InPlacePodVerticalScalingInitContainers"
    why = f'pod update requires features {feature} which are not available on node "n1"'
    assert (await refusal(validator, request)).message == f'pods "p" is forbidden: {why}'
    await admit(validator, write("UPDATE", prepared("1", 2), old=prepared("1", 1)))

    caches.put(NODES, {"metadata": {"name": "n1"}, "status": {"declaredFeatures": [feature]}})
    await admit(validator, request)


# -- PodResizeValidator -----------------------------------------------------------------------------------------------


def resized(cpu: str, memory: str = "1Gi", *, generation: int = 2) -> Object:
    made = pod(nodeName="n1", containers=[{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}])
    made["metadata"]["generation"] = generation
    return made


@pytest.mark.parametrize(
    ("labels", "new", "why", "cause"),
    [
        ({}, resized("2"), "", ""),
        (
            {},
            resized("3", "5Gi"),
            "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000; "
            f"memory, requested: {5 << 30}, allocatable: {4 << 30}",
            "NodeCapacity",
        ),
        ({}, resized("3", generation=1), "", ""),
        (
            {"kubernetes.io/os": "windows"},
            resized("1"),
            'pod resize is only supported on linux nodes, node "n1" is "windows"',
            "UnsupportedPlatform",
        ),
    ],
    ids=["what the node has", "more than that", "no change of the spec", "another system"],
)
async def test_a_pod_never_grows_beyond_its_node(labels: dict[str, str], new: Object, why: str, cause: str) -> None:
    caches = MemoryCaches()
    node = {"metadata": {"name": "n1", "labels": labels}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi"}}}
    caches.put(NODES, node)
    request = write("UPDATE", new, old=resized("1", generation=1), subresource="resize")
    if not why:
        await admit(PodResizeValidator(caches), request)
        return
    error = await refusal(PodResizeValidator(caches), request)
    assert (error.code, error.message) == (403, f'pods "p" is forbidden: {why}')
    assert error.details["causes"] == [{"reason": cause}]
