"""The life of pods on a node: started, restarted, ended, adopted. What API and runtime show, not who called whom."""

from __future__ import annotations

import pytest

from kone.apimachinery.kinds import CONFIGMAPS, PODS
from kone.apimachinery.objects import uid_of
from kone.runtime.parts import VolumeLimitReached, VolumesWaiting
from kone.runtime.runtime import ContainerState, Image
from tests.fakes_runtime import NO_COMMAND
from tests.runtime.kubelet_world import World, make_container, make_pod

PRESENT = 'Container image "busybox:test" already present on machine and can be accessed by the pod'


async def test_a_pod_starts_and_becomes_ready(world: World) -> None:
    await world.create("p")
    assert world.runtime.running() == ["c"]
    assert world.phase("p") == "Running"
    status = world.pod("p")["status"]
    assert (status["podIP"], status["hostIP"], status["qosClass"]) == ("10.244.0.2", "192.0.2.1", "BestEffort")
    assert world.conditions("p") == {
        "PodReadyToStartContainers": ("True",),
        "Initialized": ("True",),
        "Ready": ("True",),
        "ContainersReady": ("True",),
        "PodScheduled": ("True",),
    }
    c = world.container("p", "c")
    assert (c["ready"], c["started"], c["restartCount"]) == (True, True, 0)
    assert c["containerID"] == f"docker://{world.runtime.find('c').id}"
    assert world.events("p") == [PRESENT, "Container created", "Container started"]


async def test_a_pod_of_another_node_is_not_ours(world: World) -> None:
    await world.create("p", nodeName="elsewhere")
    assert world.runtime.running() == []


async def test_a_job_that_succeeds_is_succeeded(world: World) -> None:
    await world.create("p", make_container(script="exit 0"), restartPolicy="Never")
    assert world.phase("p") == "Succeeded"
    assert world.conditions("p") == {
        "PodReadyToStartContainers": ("False", "PodSandboxNotReady", "pod sandbox is not ready"),
        "Initialized": ("True", "PodCompleted"),
        "Ready": ("False", "PodCompleted"),
        "ContainersReady": ("False", "PodCompleted"),
        "PodScheduled": ("True",),
    }
    c = world.container("p", "c")
    assert (c["state"]["terminated"]["reason"], c["ready"], c["started"]) == ("Completed", False, False)
    assert world.pod("p")["status"]["podIP"] == "10.244.0.2"  # still to be read, though it is free again
    assert world.network.addresses == {}
    assert world.volumes.mounts == set()


async def test_a_job_that_fails_is_failed(world: World) -> None:
    await world.create("p", make_container(script="exit 3"), restartPolicy="Never")
    assert world.phase("p") == "Failed"
    assert world.container("p", "c")["state"]["terminated"]["exitCode"] == 3
    assert world.conditions("p")["Ready"] == ("False", "PodFailed")
    assert world.conditions("p")["Initialized"] == ("True",)


async def test_one_of_two_that_fails_leaves_the_pod_running(world: World) -> None:
    await world.create("p", make_container("a", "exit 5"), make_container("b"), restartPolicy="Never")
    assert world.phase("p") == "Running"
    assert world.conditions("p")["Ready"] == ("False", "ContainersNotReady", "containers with unready status: [a]")


async def test_a_container_that_ends_is_started_again(world: World) -> None:
    await world.create("p", make_container())
    world.runtime.end("c", 4)
    await world.settle()
    c = world.container("p", "c")
    assert c["restartCount"] == 1
    assert "running" in c["state"]
    assert (c["lastState"]["terminated"]["exitCode"], c["lastState"]["terminated"]["reason"]) == (4, "Error")


async def test_restarts_back_off_10_20_40_seconds(world: World) -> None:
    """A container that ends at once restarts at 0, 10, 30, 70 s: four times in 100 s after its first run."""
    pod = await world.create("p", make_container(script="exit 1"))
    where = f"p_default({uid_of(pod)})"
    assert world.container("p", "c")["restartCount"] == 1
    waiting = world.container("p", "c")["state"]["waiting"]
    assert waiting["reason"] == "CrashLoopBackOff"
    assert waiting["message"] == f"back-off 10s restarting failed container=c pod={where}"
    assert world.events("p", "BackOff") == [f"Back-off restarting failed container c in pod {where}"]
    assert world.phase("p") == "Running"
    counts = []
    for _ in range(10):
        await world.advance(10.0)
        counts.append(world.container("p", "c")["restartCount"])
    assert counts == [2, 2, 3, 3, 3, 3, 4, 4, 4, 4]


async def test_a_long_good_run_starts_the_back_off_anew(world: World) -> None:
    await world.create("p")
    for _ in range(2):
        world.runtime.end("c", 1)
        await world.advance(20.0)
    await world.advance(700.0)
    world.runtime.end("c", 1)
    await world.settle()
    assert world.runtime.running() == ["c"]


async def test_on_failure_restarts_until_it_succeeds(world: World) -> None:
    await world.create("p", make_container(), restartPolicy="OnFailure")
    world.runtime.end("c", 7)
    await world.settle()
    assert world.runtime.running() == ["c"]
    world.runtime.end("c", 0)
    await world.settle()
    assert world.phase("p") == "Succeeded"
    assert world.container("p", "c")["lastState"]["terminated"]["exitCode"] == 7


async def test_a_container_has_a_restart_policy_of_its_own(world: World) -> None:
    await world.create(
        "p", make_container("a", restartPolicy="OnFailure"), make_container("b", "exit 0"), restartPolicy="Never"
    )
    world.runtime.end("a", 9)
    await world.settle()
    assert world.runtime.running() == ["a"]
    world.runtime.end("a", 0)
    await world.settle()
    assert world.phase("p") == "Succeeded"


async def test_a_rule_restarts_all_containers_in_place(world: World) -> None:
    rule = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}
    main = make_container("a", restartPolicy="Never", restartPolicyRules=[rule])
    init = make_container("i", "exit 0")
    await world.create(
        "p", main, make_container("b", restartPolicy="Never"), initContainers=[init], restartPolicy="Never"
    )
    assert world.conditions("p")["AllContainersRestarting"] == ("False",)
    before = await world.runtime.sandboxes()
    world.runtime.end("a", 42)
    await world.advance(3.0)
    assert sorted(world.runtime.running()) == ["a", "b"]
    assert await world.runtime.sandboxes() == before
    for name in ("a", "b", "i"):
        found = world.container("p", name)
        assert found["restartCount"] == 1
        assert found["lastState"]["terminated"]["reason"] == "RestartingAllContainers"
    assert world.conditions("p")["AllContainersRestarting"] == ("False",)
    assert world.phase("p") == "Running"


async def test_of_ended_containers_one_is_kept_for_its_log(world: World) -> None:
    await world.create("p")
    for _ in range(4):
        world.runtime.end("c", 1)
        await world.advance(400.0)
    known = await world.runtime.containers()
    assert sorted(c.restart_count for c in known) == [3, 4]
    assert world.kubelet.container(uid_of(world.pod("p")), "c", previous=True).restart_count == 3  # type: ignore[union-attr]


# Init containers and sidecars


async def test_init_containers_run_one_after_another(world: World) -> None:
    await world.create(
        "p", make_container(), initContainers=[make_container("i1", "sleep 5"), make_container("i2", "sleep 5")]
    )
    assert world.runtime.running() == ["i1"]
    assert world.container("p", "c")["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert world.conditions("p")["Initialized"] == (
        "False",
        "ContainersNotInitialized",
        "containers with incomplete status: [i1 i2]",
    )
    await world.advance(5.0)
    assert world.runtime.running() == ["i2"]
    assert world.container("p", "i1")["ready"]
    assert world.phase("p") == "Pending"
    await world.advance(5.0)
    assert world.runtime.running() == ["c"]
    assert world.phase("p") == "Running"


async def test_an_init_container_that_fails_for_good_fails_the_pod(world: World) -> None:
    await world.create("p", initContainers=[make_container("i", "exit 2")], restartPolicy="Never")
    assert world.phase("p") == "Failed"
    assert "waiting" in world.container("p", "c")["state"]


async def test_an_init_container_is_tried_again(world: World) -> None:
    await world.create("p", initContainers=[make_container("i", "exit 2")])
    assert world.container("p", "i")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert world.container("p", "i")["restartCount"] == 1
    assert world.phase("p") == "Pending"


async def test_a_sidecar_lets_the_next_start_and_stays(world: World) -> None:
    await world.create("p", initContainers=[make_container("s", restartPolicy="Always"), make_container("i", "exit 0")])
    assert world.runtime.running() == ["s", "c"]
    assert world.container("p", "s")["ready"]


async def test_a_sidecar_ends_when_the_job_is_done(world: World) -> None:
    sidecar = make_container("s", "trap 'exit 0' TERM; sleep 1000", restartPolicy="Always")
    await world.create("p", make_container(), initContainers=[sidecar], restartPolicy="Never")
    world.runtime.end("c", 0)
    await world.settle()
    assert world.phase("p") == "Succeeded"
    assert world.container("p", "s")["state"]["terminated"]["exitCode"] == 0


async def test_sidecars_end_after_what_they_serve_the_last_one_first(world: World) -> None:
    def slow(name: str) -> dict[str, object]:
        return make_container(name, restartPolicy="Always")

    pod = await world.create(
        "p", make_container(), initContainers=[slow("s1"), slow("s2")], terminationGracePeriodSeconds=30
    )
    await world.delete("p")
    assert uid_of(pod) == uid_of(world.pod("p"))
    world.runtime.end("c", 0)  # it leaves by itself, within the grace period
    await world.advance(1.0)
    assert world.runtime.running() == ["s1", "s2"]
    world.runtime.end("s2", 0)
    await world.advance(1.0)
    assert world.runtime.running() == ["s1"]
    await world.advance(40.0)
    assert world.runtime.running() == []
    assert not world.exists("p")


# Images and configuration that cannot be had


async def test_a_missing_image_is_said_and_tried_again(world: World) -> None:
    await world.create("p", make_container(image="registry.test/none:1"))
    waiting = world.container("p", "c")["state"]["waiting"]
    assert waiting == {
        "reason": "ErrImagePull",
        "message": "manifest for registry.test/none:1 not found: manifest unknown",
    }
    await world.advance(1.0)
    waiting = world.container("p", "c")["state"]["waiting"]
    assert waiting["reason"] == "ImagePullBackOff"
    assert waiting["message"] == (
        'Back-off pulling image "registry.test/none:1": ErrImagePull: '
        "manifest for registry.test/none:1 not found: manifest unknown"
    )
    assert world.events("p")[:5] == [
        'Pulling image "registry.test/none:1"',
        'Failed to pull image "registry.test/none:1": manifest for registry.test/none:1 not found: manifest unknown',
        "Error: ErrImagePull",
        'Back-off pulling image "registry.test/none:1"',
        "Error: ImagePullBackOff",
    ]
    world.runtime.registry["registry.test/none:1"] = Image("sha256:late", ("registry.test/none:1",), size_bytes=12)
    await world.advance(12.0)
    assert world.runtime.running() == ["c"]
    assert world.runtime.pulls == ["registry.test/none:1"] * 2
    assert world.events("p", "Pulled") == [
        'Successfully pulled image "registry.test/none:1" in 0s (0s including waiting). Image size: 12 bytes.'
    ]


async def test_never_pull(world: World) -> None:
    await world.create("p", make_container(image="none:1", imagePullPolicy="Never"))
    message = 'Container image "none:1" is not present with pull policy of Never'
    assert world.container("p", "c")["state"]["waiting"] == {"reason": "ErrImageNeverPull", "message": message}
    assert world.events("p") == [message, "Error: ErrImageNeverPull"]


async def test_one_container_without_its_image_does_not_keep_the_others(world: World) -> None:
    await world.create("p", make_container("a", image="none:1", imagePullPolicy="Never"), make_container("b"))
    assert world.runtime.running() == ["b"]
    assert world.phase("p") == "Pending"


async def test_a_name_that_is_none(world: World) -> None:
    await world.create("p", make_container(image="Busy//box"))
    waiting = world.container("p", "c")["state"]["waiting"]
    assert waiting["reason"] == "InvalidImageName"
    assert waiting["message"] == (
        'Failed to apply default image tag "Busy//box": '
        'couldn\'t parse image name "Busy//box": invalid reference format'
    )


async def test_a_missing_configmap_is_waited_for(world: World) -> None:
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}}]
    await world.create("p", make_container(env=env))
    assert world.container("p", "c")["state"]["waiting"] == {
        "reason": "CreateContainerConfigError",
        "message": 'configmap "cm" not found',
    }
    assert world.events("p", "Failed") == ['Error: configmap "cm" not found']
    assert world.conditions("p")["PodReadyToStartContainers"] == ("True",)
    configmap = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "namespace": "default"}}
    world.client.put(CONFIGMAPS, {**configmap, "data": {"a": "late"}})
    await world.advance(2.0)
    assert world.runtime.running() == ["c"]
    assert ("A", "late") in world.runtime.config("c").env


async def test_a_command_that_is_missing(world: World) -> None:
    await world.create("p", make_container(command=["nope"]))
    waiting = world.container("p", "c")["state"]["waiting"]
    assert (waiting["reason"], waiting["message"]) == ("RunContainerError", NO_COMMAND)
    assert world.events("p", "Failed") == [f"Error: {NO_COMMAND}"]
    last = world.container("p", "c")["lastState"]["terminated"]
    assert (last["reason"], last["exitCode"], last["message"]) == ("StartError", 128, NO_COMMAND)


async def test_a_command_that_is_missing_and_no_second_try(world: World) -> None:
    await world.create("p", make_container(command=["nope"]), restartPolicy="Never")
    assert world.phase("p") == "Failed"
    ended = world.container("p", "c")["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("StartError", 128)


async def test_a_volume_that_is_missing(world: World) -> None:
    message = 'MountVolume.SetUp failed for volume "v" : configmap "cm" not found'
    world.volumes.missing["v"] = message
    await world.create("p", volumes=[{"name": "v", "configMap": {"name": "cm"}}])
    assert world.events("p", "FailedMount") == [message]
    assert world.container("p", "c")["state"]["waiting"] == {"reason": "ContainerCreating"}
    assert world.conditions("p")["PodReadyToStartContainers"] == (
        "False",
        "PodSandboxNotReady",
        "no pod sandbox exists",
    )
    world.volumes.missing.clear()
    await world.advance(2.0)
    assert world.runtime.running() == ["c"]


async def test_a_volume_that_waits_is_not_worth_an_event(world: World) -> None:
    world.volumes.missing["v"] = VolumesWaiting("pv")
    await world.create("p", volumes=[{"name": "v", "emptyDir": {}}])
    await world.advance(60.0)
    assert world.events("p", "FailedMount") == []
    world.volumes.missing.clear()
    await world.advance(10.0)
    assert world.runtime.running() == ["c"]


async def test_a_volume_that_is_one_too_many_for_the_node_rejects_its_pod(world: World) -> None:
    world.volumes.missing["v"] = VolumeLimitReached("no slot is left", "VolumeAttachmentLimitExceeded")
    await world.create("p", volumes=[{"name": "v", "emptyDir": {}}])
    assert world.events("p", "VolumeAttachmentLimitExceeded") == ["no slot is left"]
    status = world.pod("p")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "VolumeAttachmentLimitExceeded")
    assert status["message"] == "Pod was rejected: no slot is left"


@pytest.mark.parametrize(
    ("mode", "supported", "deep", "shown"),
    [
        ("IfPossible", False, False, "Disabled"),
        ("IfPossible", True, True, "Enabled"),
        ("Enabled", True, True, "Enabled"),
        ("Disabled", True, False, "Disabled"),
    ],
)
async def test_read_only_with_all_that_is_mounted_below(
    world: World, mode: str, supported: bool, deep: bool, shown: str
) -> None:
    world.runtime.recursive_read_only = supported
    await world.restart()
    mount = {"name": "v", "mountPath": "/v", "readOnly": True, "recursiveReadOnly": mode}
    container = make_container("c", volumeMounts=[mount])
    await world.create("p", container, volumes=[{"name": "v", "emptyDir": {}}])
    (made,) = [m for m in world.runtime.config("c").mounts if m.container_path == "/v"]
    assert made.recursive_read_only is deep
    assert world.container("p", "c")["volumeMounts"][0]["recursiveReadOnly"] == shown


async def test_deep_read_only_mounts_that_the_runtime_cannot_make(world: World) -> None:
    mount = {"name": "v", "mountPath": "/v", "readOnly": True, "recursiveReadOnly": "Enabled"}
    container = make_container("c", volumeMounts=[mount])
    await world.create("p", container, volumes=[{"name": "v", "emptyDir": {}}])
    message = 'volume "v" requested recursive read-only mode, but it is not supported by the runtime'
    assert world.container("p", "c")["state"]["waiting"] == {"reason": "CreateContainerConfigError", "message": message}


async def test_a_volume_that_went_missing_is_waited_for_without_haste(world: World) -> None:
    await world.create("p", volumes=[{"name": "v", "emptyDir": {}}])
    world.volumes.missing["v"] = "gone"
    world.volumes.asked = 0
    world.runtime.end("c", 1)
    await world.settle()
    assert world.volumes.asked == 1
    world.volumes.missing.clear()
    await world.advance(1.0)
    assert world.runtime.running() == ["c"]


async def test_a_network_that_fails_is_tried_again(world: World) -> None:
    world.network.fail = "no address is free"
    await world.create("p")
    assert world.events("p", "FailedCreatePodSandBox") == ["Failed to create pod sandbox: no address is free"]
    assert world.runtime.running() == []
    assert [s.attempt for s in await world.runtime.sandboxes()] == [0]  # not before a second has passed
    world.network.fail = ""
    await world.advance(2.0)
    assert world.runtime.running() == ["c"]


async def test_a_root_image_for_a_pod_that_must_not_be_root(world: World) -> None:
    pod = await world.create("p", make_container(securityContext={"runAsNonRoot": True}))
    message = f'container has runAsNonRoot and image will run as root (pod: "p_default({uid_of(pod)})", container: c)'
    assert world.container("p", "c")["state"]["waiting"] == {"reason": "CreateContainerConfigError", "message": message}


# Ending


async def test_a_deleted_pod_ends_within_its_grace_period_and_is_gone(world: World) -> None:
    pod = await world.create("p", terminationGracePeriodSeconds=10)
    await world.delete("p")
    assert world.events("p", "Killing") == ["Stopping container c"]
    await world.advance(9.0)
    assert world.runtime.running() == ["c"]
    await world.advance(1.0)
    assert not world.exists("p")
    assert await world.runtime.containers() == []
    assert await world.runtime.sandboxes() == []
    assert world.network.addresses == {}
    assert not (world.path / "kubelet" / "pods" / uid_of(pod)).exists()


async def test_a_pod_that_listens_is_gone_at_once(world: World) -> None:
    await world.create("p", make_container(script="trap 'exit 0' TERM; sleep 1000"))
    await world.delete("p")
    assert not world.exists("p")


async def test_a_finalizer_lets_the_end_be_seen(world: World) -> None:
    pod = make_pod("p", make_container(script="trap 'exit 8' TERM; sleep 1000"), restartPolicy="Never")
    pod["metadata"]["finalizers"] = ["example.com/hold"]
    world.client.put(PODS, pod)
    await world.settle()
    await world.delete("p")
    assert world.phase("p") == "Failed"
    assert world.container("p", "c")["state"]["terminated"]["exitCode"] == 8
    assert world.pod("p")["metadata"]["deletionTimestamp"]
    assert world.pod("p")["metadata"]["deletionGracePeriodSeconds"] == 0, "the node is done: its claims are free"
    await world.change("p", "metadata", "finalizers", to=[])
    assert not world.exists("p")
    assert await world.runtime.containers() == []


async def test_a_second_delete_may_shorten_the_grace_period(world: World) -> None:
    await world.create("p", terminationGracePeriodSeconds=600)
    await world.delete("p")
    await world.advance(5.0)
    assert world.runtime.running() == ["c"]
    await world.delete("p", grace_s=3)
    await world.advance(3.0)
    assert world.runtime.running() == []
    assert world.events("p", "Killing") == ["Stopping container c"]


async def test_a_pod_deleted_while_it_starts_is_not_started(world: World) -> None:
    await world.create("p", make_container(lifecycle={"postStart": {"exec": {"command": ["sleep", "60"]}}}))
    assert world.runtime.running() == ["c"]
    await world.delete("p", grace_s=2)
    await world.advance(3.0)
    assert not world.exists("p")
    assert world.runtime.running() == []


async def test_an_active_deadline_ends_the_pod(world: World) -> None:
    container = make_container(script="trap 'exit 0' TERM; sleep 1000")
    await world.create("p", container, restartPolicy="Never", activeDeadlineSeconds=20)
    await world.advance(19.0)
    assert world.phase("p") == "Running"
    await world.advance(1.5)
    status = world.pod("p")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")
    assert status["message"] == "Pod was active on the node longer than the specified deadline"
    assert world.container("p", "c")["state"]["terminated"]["exitCode"] == 0


async def test_an_evicted_pod_is_failed_with_the_reason(world: World) -> None:
    pod = await world.create("p", make_container(script="trap 'exit 0' TERM; sleep 1000"))
    await world.kubelet.evict(uid_of(pod), "Evicted", "The node was low on resource: memory.")
    await world.settle()
    status = world.pod("p")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "Evicted")
    assert world.runtime.running() == []


# Hooks and probes


async def test_post_start_comes_before_ready_and_before_the_next(world: World) -> None:
    hook = {"postStart": {"exec": {"command": ["sleep", "4"]}}}
    await world.create("p", make_container("a", lifecycle=hook), make_container("b"))
    assert world.runtime.running() == ["a"]
    assert world.phase("p") == "Pending"
    assert world.container("p", "a")["state"] == {"waiting": {"reason": "ContainerCreating"}}
    await world.advance(4.0)
    assert world.runtime.running() == ["a", "b"]
    assert world.conditions("p")["Ready"] == ("True",)


async def test_post_start_that_fails_ends_the_container(world: World) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "exit 3"]}}}
    await world.create("p", make_container(lifecycle=hook), restartPolicy="Never", terminationGracePeriodSeconds=5)
    await world.advance(5.0)
    assert world.phase("p") == "Failed"
    assert world.container("p", "c")["state"]["terminated"]["exitCode"] == 137
    assert world.events("p", "FailedPostStartHook") == ["PostStartHook failed"]
    assert world.events("p", "Killing") == ["FailedPostStartHook"]


async def test_pre_stop_counts_as_grace(world: World) -> None:
    hook = {"preStop": {"sleep": {"seconds": 4}}}
    await world.create("p", make_container(lifecycle=hook), terminationGracePeriodSeconds=10)
    await world.delete("p")
    await world.advance(9.5)
    assert world.runtime.running() == ["c"]
    await world.advance(0.5)
    assert not world.exists("p")


async def test_pre_stop_is_cut_off_when_the_grace_is_over(world: World) -> None:
    hook = {"preStop": {"sleep": {"seconds": 1000}}}
    await world.create("p", make_container(lifecycle=hook), terminationGracePeriodSeconds=10)
    await world.delete("p")
    await world.advance(12.0)  # 10 s, and the two seconds everybody gets after the signal
    assert not world.exists("p")


async def test_a_readiness_probe_decides_ready(world: World) -> None:
    command = ["sh", "-c", "exit 0"]
    world.runtime.exec_codes[" ".join(command)] = 1
    probe = {"exec": {"command": command}, "periodSeconds": 5}
    await world.create("p", make_container(readinessProbe=probe))
    await world.advance(6.0)
    assert world.phase("p") == "Running"
    assert world.conditions("p")["Ready"] == ("False", "ContainersNotReady", "containers with unready status: [c]")
    world.runtime.exec_codes.clear()
    await world.advance(6.0)
    assert world.conditions("p")["Ready"] == ("True",)


async def test_a_liveness_probe_that_fails_restarts(world: World) -> None:
    command = ["sh", "-c", "exit 0"]
    probe = {"exec": {"command": command}, "periodSeconds": 5, "failureThreshold": 1}
    container = make_container(script="trap 'exit 5' TERM; sleep 1000", livenessProbe=probe)
    await world.create("p", container)
    await world.advance(10.0)
    assert world.container("p", "c")["restartCount"] == 0
    world.runtime.exec_codes[" ".join(command)] = 1
    await world.advance(6.0)
    assert world.container("p", "c")["restartCount"] == 1
    assert world.container("p", "c")["lastState"]["terminated"]["exitCode"] == 5
    assert world.events("p", "Killing") == ["Container c failed liveness probe, will be restarted"]


async def test_readiness_gates(world: World) -> None:
    await world.create("p", readinessGates=[{"conditionType": "example.com/gate"}])
    assert world.conditions("p")["Ready"] == (
        "False",
        "ReadinessGatesNotReady",
        'corresponding condition of pod readiness gate "example.com/gate" does not exist.',
    )
    gate = {"type": "example.com/gate", "status": "True"}
    await world.change("p", "status", "conditions", to=[*world.pod("p")["status"]["conditions"], gate])
    assert world.conditions("p")["Ready"] == ("True",)
    assert world.conditions("p")["example.com/gate"] == ("True",)


# Being killed, and Docker being gone


async def test_a_restarted_kubelet_adopts_what_runs(world: World) -> None:
    await world.create("p")
    before = world.runtime.find("c").id
    written = world.pod("p")["metadata"]["resourceVersion"]
    await world.restart()
    assert world.runtime.find("c").id == before
    assert world.runtime.running() == ["c"]
    assert world.pod("p")["metadata"]["resourceVersion"] == written  # nothing to say, nothing written
    assert world.network.restored == {uid_of(world.pod("p"))}
    world.runtime.end("c", 1)
    await world.settle()
    assert world.container("p", "c")["restartCount"] == 1


async def test_a_pod_that_was_done_is_not_started_by_a_restarted_kubelet(world: World) -> None:
    await world.create("p", make_container(script="exit 0"), restartPolicy="Never")
    written = world.pod("p")["metadata"]["resourceVersion"]
    await world.restart()
    assert world.runtime.running() == []
    assert world.pod("p")["metadata"]["resourceVersion"] == written


async def test_a_container_that_ended_while_the_kubelet_was_away(world: World) -> None:
    await world.create("p")
    await world.kubelet.stop()
    world.runtime.end("c", 9)
    world.make_kubelet()
    await world.start()
    c = world.container("p", "c")
    assert (c["restartCount"], c["lastState"]["terminated"]["exitCode"]) == (1, 9)


async def test_a_pod_deleted_while_the_kubelet_was_away_is_ended(world: World) -> None:
    await world.create("p", terminationGracePeriodSeconds=5)
    await world.kubelet.stop()
    await world.client.delete(PODS, "p", namespace="default", grace_s=0)
    world.make_kubelet()
    await world.start()
    assert world.runtime.running() == ["c"]  # with the grace that its labels tell
    await world.advance(5.0)
    assert await world.runtime.containers() == []
    assert await world.runtime.sandboxes() == []


async def test_a_sandbox_that_dies_is_replaced_with_all_that_was_in_it(world: World) -> None:
    pod = await world.create("p")
    world.runtime.kill_sandbox(uid_of(pod))
    await world.advance(31.0)
    assert world.runtime.running() == ["c"]
    assert world.events("p", "SandboxChanged") == ["Pod sandbox changed, it will be killed and re-created."]
    assert world.container("p", "c")["restartCount"] == 1
    assert [s.attempt for s in await world.runtime.sandboxes() if s.ready] == [1]


async def test_a_container_that_someone_removed_is_made_again(world: World) -> None:
    await world.create("p")
    await world.runtime.remove_container(world.runtime.find("c").id)
    await world.settle()
    assert world.runtime.running() == ["c"]
    assert world.container("p", "c")["restartCount"] == 1
    assert world.container("p", "c")["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"


async def test_pods_wait_while_the_runtime_is_gone_and_go_on_after(world: World) -> None:
    await world.create("p")
    world.runtime.go_down()
    await world.settle()
    await world.create("q")
    assert world.phase("p") == "Running"
    assert world.phase("q") == "Pending"
    world.runtime.come_up()
    await world.advance(10.0)
    assert world.phase("q") == "Running"
    assert world.container("p", "c")["restartCount"] == 0


async def test_a_runtime_that_is_not_there_at_the_start(world: World) -> None:
    await world.kubelet.stop()
    world.runtime.up = False
    world.make_kubelet()
    await world.start()
    await world.create("p")
    assert world.phase("p") == "Pending"
    world.runtime.come_up()
    await world.advance(5.0)
    assert world.phase("p") == "Running"


# What a status write costs


async def test_a_start_takes_two_to_four_status_writes(world: World) -> None:
    writes = []
    world.client.informer(PODS).subscribe(lambda kind, pod, old: writes.append(kind))
    await world.create("p")
    assert 2 <= writes.count("MODIFIED") <= 4
    before = len(writes)
    world.kubelet.sync_pod(uid_of(world.pod("p")))
    await world.settle()
    assert len(writes) == before


# What the node does not take


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        pytest.param(
            {"nodeSelector": {"no": "such"}},
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            id="another node is selected",
        ),
        pytest.param(
            {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
            "SysctlForbidden",
            'forbidden sysctl: "kernel.msgmax" not allowlisted',
            id="an unsafe sysctl",
        ),
    ],
)
async def test_a_pod_that_is_not_for_this_node(
    world: World, spec: dict[str, object], reason: str, message: str
) -> None:
    await world.create("p", **spec)
    status = world.pod("p")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", reason)
    assert status["message"] == f"Pod was rejected: {message}"
    assert world.events("p", reason) == [message]
    assert world.runtime.running() == []
    assert "containerStatuses" not in status


async def test_more_than_the_node_has(world: World) -> None:
    await world.create("p", make_container(resources={"requests": {"cpu": "500"}}))
    status = world.pod("p")["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "OutOfcpu")
    assert status["message"].startswith(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 500000, used: 0"
    )


async def test_an_ephemeral_container_joins_a_running_pod(world: World) -> None:
    await world.create("p")
    added = [make_container("e", "echo hi; exit 3", targetContainerName="c")]
    await world.change("p", "spec", "ephemeralContainers", to=added)
    state = world.container("p", "e")["state"]
    assert (state["terminated"]["reason"], state["terminated"]["exitCode"]) == ("Error", 3)
    assert world.runtime.config("e").target_container_id == world.runtime.find("c").id
    assert world.runtime.find("c").state is ContainerState.RUNNING
    assert world.phase("p") == "Running"
