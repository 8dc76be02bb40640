"""What the runtime is told of containers, sandboxes and confinement."""

from __future__ import annotations

import pytest

from kone.apimachinery.objects import Object
from kone.runtime.container_config import (
    container_config,
    container_resources,
    fqdn,
    hostname,
    oom_score_adj,
    sandbox_config,
)
from kone.runtime.environment import ConfigError
from kone.runtime.runtime import ContainerConfig, Image, Resources, SecurityContext
from kone.runtime.security_context import security_context
from tests.runtime.kubelet_world import make_container, make_pod

GIB = 1 << 30
IMAGE = Image("sha256:1")


def config_of(container: Object, **spec: object) -> ContainerConfig:
    return container_config(
        make_pod("p", container, **spec),
        "regular",
        container,
        image=IMAGE,
        restart_count=0,
        env={"A": "1"},
        mounts=[],
        security=SecurityContext(),
        cgroup_parent="/kubepods/pod1",
        node_memory_bytes=4 * GIB,
        termination_file="/t",
    )


def test_command_and_args_are_expanded() -> None:
    config = config_of(make_container(command=["echo", "$(A)"], args=["$$(A)", "$(B)"]))
    assert (config.command, config.args) == (["echo", "1"], ["$(A)", "$(B)"])


def test_without_a_command_the_image_decides() -> None:
    config = config_of({"name": "c", "image": "i", "args": ["x"]})
    assert (config.command, config.args) == (None, ["x"])
    assert config_of({"name": "c", "image": "i"}).args is None


@pytest.mark.parametrize(
    ("spec", "mode"),
    [({}, "container"), ({"hostPID": True}, "host"), ({"shareProcessNamespace": True}, "pod")],
    ids=["its own processes", "the host's", "the pod's"],
)
def test_whose_processes_it_sees(spec: dict[str, object], mode: str) -> None:
    assert config_of(make_container(), **spec).pid_mode == mode


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, Resources(cpu_shares=2, oom_score_adj=1000)),
        ({"requests": {"cpu": "100m"}}, Resources(cpu_shares=102, oom_score_adj=999)),
        (
            {"limits": {"cpu": "500m", "memory": "1Gi"}},
            Resources(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_bytes=GIB, oom_score_adj=-997),
        ),
        ({"limits": {"cpu": "1m"}}, Resources(cpu_shares=2, cpu_quota=1000, cpu_period=100_000, oom_score_adj=999)),
    ],
    ids=["nothing asked", "a request", "limits stand for requests", "the least quota"],
)
def test_resources_as_the_kernel_takes_them(resources: Object, expected: Resources) -> None:
    container = make_container(resources=resources)
    assert container_resources(make_pod("p", container), "regular", container, node_memory_bytes=4 * GIB) == expected


def test_who_dies_first() -> None:
    """Guaranteed pods and the node's critical ones last; Burstable by how much of its memory they asked for."""
    both = {"cpu": "1", "memory": "1Gi"}
    guaranteed = make_container(resources={"limits": both, "requests": both})
    half = make_container(resources={"requests": {"memory": "2Gi"}})
    assert oom_score_adj(make_pod("p", guaranteed), "regular", guaranteed, 4 * GIB) == -997
    assert oom_score_adj(make_pod("p", half), "regular", half, 4 * GIB) == 500
    critical = {"priorityClassName": "system-node-critical"}
    assert oom_score_adj(make_pod("p", half, priority=2_000_001_000, **critical), "regular", half, 4 * GIB) == -997
    assert oom_score_adj(make_pod("p", half, priority=2_000_000_000), "regular", half, 4 * GIB) == 500
    static = make_pod("p", half, **critical)
    static["metadata"]["annotations"] = {"kubernetes.io/config.source": "file"}
    assert oom_score_adj(static, "regular", half, 4 * GIB) == -997
    sidecar = make_container("s", restartPolicy="Always")
    assert oom_score_adj(make_pod("p", half, initContainers=[sidecar]), "init", sidecar, 4 * GIB) == 500


LONG = "a-pod-with-a-name-that-is-quite-a-bit-longer-than-sixty-two-xx-and-then-some"


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("p", {}, "p"),
        ("p", {"hostname": "h"}, "h"),
        ("p", {"hostname": "h", "subdomain": "s"}, "h"),
        ("p", {"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": True}, "h.s.default.svc.cluster.local"),
        ("p", {"setHostnameAsFQDN": True}, "p"),
        (LONG, {}, LONG[:62]),
    ],
    ids=[
        "the pod's name",
        "chosen",
        "with a subdomain",
        "as FQDN",
        "no FQDN without a subdomain",
        "cut, without the dash",
    ],
)
def test_host_names(name: str, spec: dict[str, object], expected: str) -> None:
    assert hostname(make_pod(name, **spec), "cluster.local") == expected


def test_a_full_name_that_the_kernel_does_not_take() -> None:
    pod = make_pod("p" * 40, subdomain="s" * 20, setHostnameAsFQDN=True)
    with pytest.raises(ConfigError, match=r"is too long \(64 characters is the max, 87 characters requested\)$"):
        hostname(pod, "cluster.local")
    assert len(fqdn(pod, "cluster.local")) == 87


def test_a_sandbox_on_the_hosts_network_has_no_name_of_its_own() -> None:
    spec = {"hostNetwork": True, "securityContext": {"sysctls": [{"name": "kernel/shm_rmid_forced", "value": "1"}]}}
    config = sandbox_config(make_pod("p", **spec), attempt=1, cluster_domain="cluster.local", cgroup_parent="")
    assert (config.hostname, config.host_network, config.attempt) == ("", True, 1)
    assert config.sysctls == {"kernel.shm_rmid_forced": "1"}


# Confinement


def confined(container: Object, *, user: str = "", **spec: object) -> SecurityContext:
    return security_context(make_pod("p", container, **spec), container, Image("sha256:1", user=user))


@pytest.mark.parametrize(
    ("pod", "own", "image_user", "expected"),
    [
        ({}, {}, "", ""),
        ({}, {}, "1000:1000", ""),
        ({}, {"runAsUser": 1001}, "", "1001"),
        ({"runAsUser": 5}, {"runAsUser": 6}, "", "6"),
        ({"runAsUser": 5, "runAsGroup": 7}, {}, "", "5:7"),
        ({"runAsGroup": 7}, {}, "app", "app:7"),
        ({"runAsGroup": 7}, {}, "", "0:7"),
    ],
    ids=[
        "the image's",
        "the image's, named",
        "chosen",
        "the container's first",
        "of the pod",
        "group only",
        "group of root",
    ],
)
def test_who_runs(pod: Object, own: Object, image_user: str, expected: str) -> None:
    container = make_container(securityContext=own)
    assert confined(container, user=image_user, securityContext=pod).user == expected


@pytest.mark.parametrize(
    ("own", "image_user", "message"),
    [
        ({"runAsUser": 0}, "", "container's runAsUser breaks non-root policy (pod: "),
        ({}, "", "container has runAsNonRoot and image will run as root (pod: "),
        ({}, "0", "container has runAsNonRoot and image will run as root (pod: "),
        (
            {},
            "app",
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root (pod: ",
        ),
    ],
)
def test_root_is_refused(own: Object, image_user: str, message: str) -> None:
    container = make_container(securityContext={"runAsNonRoot": True, **own})
    with pytest.raises(ConfigError) as error:
        confined(container, user=image_user)
    assert str(error.value).startswith(message)


def test_numbers_above_zero_are_not_root() -> None:
    container = make_container(securityContext={"runAsNonRoot": True})
    assert confined(container, user="1000").user == ""
    assert confined(make_container(), user="app", securityContext={"runAsNonRoot": True, "runAsUser": 1}).user == "1"


def test_groups_of_the_pod() -> None:
    spec = {"supplementalGroups": [555, 777], "fsGroup": 888}
    assert confined(make_container(), securityContext=spec).supplemental_groups == (555, 777, 888)


@pytest.mark.parametrize(
    ("pod", "own", "expected"),
    [
        ({}, {}, ""),
        ({"seccompProfile": {"type": "RuntimeDefault"}}, {}, "runtime/default"),
        ({"seccompProfile": {"type": "RuntimeDefault"}}, {"seccompProfile": {"type": "Unconfined"}}, ""),
    ],
)
def test_seccomp(pod: Object, own: Object, expected: str) -> None:
    assert confined(make_container(securityContext=own), securityContext=pod).seccomp == expected


def test_the_rest_of_the_context() -> None:
    own = {
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "procMount": "Unmasked",
    }
    found = confined(make_container(securityContext=own))
    assert (found.capabilities_add, found.capabilities_drop) == (("NET_ADMIN",), ("ALL",))
    assert found.read_only_rootfs
    assert found.no_new_privileges
    assert not found.masked_paths
    assert confined(make_container(securityContext={"privileged": True})).privileged
