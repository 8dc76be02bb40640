"""CRI's words in Docker's and back. The bodies are tried on Docker itself by the contract tests."""

from __future__ import annotations

from typing import Any

import pytest

from kone.runtime.docker_host import HostLimits, limits_of, read_limits
from kone.runtime.docker_translate import (
    can_mount_read_only_deeply,
    container_body,
    container_from_inspect,
    parse_docker_time,
    resources_update,
    sandbox_body,
    start_error,
)
from kone.runtime.pause_image import pause_image, pause_program
from kone.runtime.runtime import (
    ContainerConfig,
    ContainerState,
    Mount,
    PodMeta,
    Resources,
    SandboxConfig,
    SecurityContext,
)

POD = PodMeta("p", "ns", "u1")


def body_of(**more: Any) -> dict[str, Any]:
    config = ContainerConfig(POD, "c", "busybox:1", "sha256:1", **more)
    return container_body("sandbox1", config, instance="i", limits=HostLimits(may_protect=False))


def test_a_container_joins_its_sandbox() -> None:
    host = body_of()["HostConfig"]
    assert (host["NetworkMode"], host["IpcMode"], host["PidMode"]) == ("container:sandbox1", "container:sandbox1", "")
    assert body_of(pid_mode="pod")["HostConfig"]["PidMode"] == "container:sandbox1"
    assert body_of(pid_mode="target", target_container_id="x")["HostConfig"]["PidMode"] == "container:x"


def test_what_is_ours_is_labelled() -> None:
    labels = body_of(labels={"mine": "1"})["Labels"]
    assert labels["kone.instance"] == "i"
    assert labels["io.kubernetes.pod.uid"] == "u1"
    assert labels["io.kubernetes.container.name"] == "c"
    assert labels["io.kubernetes.container.restartCount"] == "0"
    assert labels["mine"] == "1"


def test_seccomp_is_unconfined_unless_asked_for() -> None:
    assert body_of()["HostConfig"]["SecurityOpt"] == ["seccomp=unconfined"]
    assert body_of(security=SecurityContext(seccomp="runtime/default"))["HostConfig"]["SecurityOpt"] == []
    confined = SecurityContext(seccomp="{}", no_new_privileges=True)
    assert body_of(security=confined)["HostConfig"]["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]


def test_mounts_say_how_they_propagate_and_how_deep_read_only_goes() -> None:
    mounts = [
        Mount("/a", "/x", read_only=True),
        Mount("/b", "/y", propagation="rshared"),
        Mount("/", "/host"),
        Mount("/c", "/z", read_only=True, recursive_read_only=True),
    ]
    assert [m["BindOptions"] for m in body_of(mounts=mounts)["HostConfig"]["Mounts"]] == [
        {"ReadOnlyNonRecursive": True},
        {"Propagation": "rshared"},
        {},
        {"Propagation": "rprivate", "ReadOnlyForceRecursive": True},
    ]


def test_pods_do_not_swap() -> None:
    host = body_of(resources=Resources(memory_bytes=5 << 20, cpu_shares=2))["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 5 << 20
    assert "CpuQuota" not in host


def test_a_lost_limit_is_taken_back() -> None:
    assert resources_update(Resources(cpu_shares=100))["CpuQuota"] == -1


@pytest.mark.parametrize(
    ("may_protect", "wanted", "given"), [(True, -997, -997), (False, -997, 0), (False, 1000, 1000)]
)
def test_hosts_that_do_not_let_containers_be_protected(may_protect: bool, wanted: int, given: int) -> None:
    config = ContainerConfig(POD, "c", "i", "sha256:1", resources=Resources(oom_score_adj=wanted))
    body = container_body("s", config, instance="i", limits=HostLimits(may_protect))
    assert body["HostConfig"]["OomScoreAdj"] == given


@pytest.mark.parametrize(
    ("bounding", "limits"),
    [
        ("000001ffffffffff", HostLimits()),
        ("000001fffeffffff", HostLimits(may_protect=False, lacking=("SYS_RESOURCE",))),
        ("000001fffdffffff", HostLimits(lacking=("SYS_TIME",))),
    ],
)
def test_what_a_host_lacks_is_what_dockerd_lacks(bounding: str, limits: HostLimits) -> None:
    assert limits_of(f"Name:\tdockerd\nCapEff:\t0000000000000000\nCapBnd:\t{bounding}\n") == limits


def test_a_docker_elsewhere_is_not_known_to_lack_anything() -> None:
    assert read_limits("tcp://192.0.2.1:2376") == HostLimits(may_protect=False)


def test_a_privileged_container_gets_what_the_host_has() -> None:
    security = SecurityContext(privileged=True, capabilities_drop=("KILL",))
    config = ContainerConfig(POD, "c", "i", "sha256:1", security=security)
    whole = container_body("s", config, instance="i", limits=HostLimits())["HostConfig"]
    assert (whole["Privileged"], whole["CapDrop"]) == (True, ["KILL"])
    less = container_body("s", config, instance="i", limits=HostLimits(False, ("SYS_RESOURCE",)))["HostConfig"]
    assert "Privileged" not in less
    assert (less["CapAdd"], less["CapDrop"]) == (["ALL"], ["SYS_RESOURCE"])
    assert less["SecurityOpt"] == ["seccomp=unconfined", "apparmor=unconfined", "label=disable"]
    assert (less["MaskedPaths"], less["ReadonlyPaths"]) == ([], [])
    assert [device["PathOnHost"] for device in less["Devices"]] == ["/dev"]


def test_a_sandbox_on_the_hosts_network() -> None:
    host = sandbox_body(SandboxConfig(POD, host_network=True, host_ipc=True), instance="i", limits=HostLimits())[
        "HostConfig"
    ]
    assert (host["NetworkMode"], host["UTSMode"], host["IpcMode"], host["OomScoreAdj"]) == (
        "host",
        "host",
        "host",
        -998,
    )
    assert sandbox_body(SandboxConfig(POD), instance="i", limits=HostLimits())["HostConfig"]["NetworkMode"] == "none"


def inspected(**state: Any) -> dict[str, Any]:
    never = "0001-01-01T00:00:00Z"
    return {
        "Id": "id1",
        "Created": "2026-01-01T00:00:00.5Z",
        "Image": "sha256:1",
        "State": {"Status": "exited", "StartedAt": never, "FinishedAt": never, **state},
        "Config": {"Labels": {"io.kubernetes.container.name": "c", "io.kubernetes.container.restartCount": "2"}},
        "HostConfig": {},
    }


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "running", "Running": True}, (ContainerState.RUNNING, "", 0)),
        ({"Status": "created"}, (ContainerState.CREATED, "", 0)),
        ({"ExitCode": 0}, (ContainerState.EXITED, "Completed", 0)),
        ({"ExitCode": 3}, (ContainerState.EXITED, "Error", 3)),
        ({"ExitCode": 137, "OOMKilled": True}, (ContainerState.EXITED, "OOMKilled", 137)),
        ({"Status": "created", "Error": "no", "ExitCode": 127}, (ContainerState.EXITED, "StartError", 128)),
        ({"Status": "exited", "Error": "no", "ExitCode": 127}, (ContainerState.EXITED, "StartError", 128)),
    ],
)
def test_states(state: dict[str, Any], expected: tuple[ContainerState, str, int]) -> None:
    status = container_from_inspect(inspected(**state))
    assert (status.state, status.reason, status.exit_code) == expected
    assert (status.name, status.restart_count) == ("c", 2)


@pytest.mark.parametrize(
    "said",
    [
        "failed to create task for container: failed to create shim task: "
        'OCI runtime create failed: exec: "x": gone: unknown',
        'failed to create shim task: OCI runtime create failed: exec: "x": gone: unknown',
        'OCI runtime create failed: exec: "x": gone',
    ],
    ids=["Docker 23 and newer", "Docker 20", "bare"],
)
def test_start_failures_in_upstreams_words(said: str) -> None:
    assert start_error(said) == (
        'failed to create containerd task: failed to create shim task: OCI runtime create failed: exec: "x": gone'
    )


def test_times_have_up_to_nine_digits() -> None:
    assert parse_docker_time("2026-01-01T00:00:01.123456789Z") == pytest.approx(1767225601.123456)
    assert parse_docker_time("0001-01-01T00:00:00Z") == 0.0


def test_the_sandbox_program_is_small_and_always_the_same() -> None:
    assert pause_program("amd64")[:4] == b"\x7fELF"
    assert len(pause_program("arm64")) < 400
    assert pause_image("amd64") == pause_image("amd64")
    with pytest.raises(ValueError, match="no sandbox program for architecture 'vax'"):
        pause_program("vax")


@pytest.mark.parametrize(
    ("docker", "kernel", "can"),
    [
        ("25.0.1", "5.12.0-generic", True),
        ("28.2.2", "6.1.0-13-amd64", True),
        ("24.0.7", "6.1.0", False),
        ("25.0.0", "5.10.0", False),
        ("20.10.24+dfsg1", "6.18.44-fc-v595", False),
        ("", "", False),
    ],
)
def test_who_can_mount_read_only_with_all_below(docker: str, kernel: str, can: bool) -> None:
    assert can_mount_read_only_deeply(docker, kernel) is can
