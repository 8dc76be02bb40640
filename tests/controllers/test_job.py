"""Jobs: each pod counted once, failures judged by the Job's policies, an end that waits for the last pod."""

from typing import Any

import pytest

from kone.apimachinery import errors
from kone.apimachinery.kinds import JOBS, PODS
from kone.apimachinery.objects import (
    Object,
    annotations_of,
    controller_of,
    dig,
    is_deleting,
    labels_of,
    metadata,
    name_of,
    replace_in,
)
from kone.apimachinery.timestamps import format_time
from kone.controllers import job_rules as rules
from kone.controllers.job import JOB_CONTROLLER, JOB_LEFTOVERS_CONTROLLER
from kone.controllers.job_indexes import format_indexes, parse_indexes
from tests.controllers.world import World, conditions
from tests.fakes import names, ready_pod, set_pod_status

BOTH = (JOB_CONTROLLER, JOB_LEFTOVERS_CONTROLLER)
NOW = 1_700_000_000.0
DONE = {"Complete": ("True", "CompletionsReached"), "SuccessCriteriaMet": ("True", "CompletionsReached")}


def job(name: str = "j", restart: str = "Never", **spec: object) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 6,
            "selector": {"matchLabels": {"job-name": name}},
            "template": {
                "metadata": {"labels": {"job-name": name}},
                "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "i"}]},
            },
            **spec,
        },
    }


def living(world: World) -> list[Object]:
    return [p for p in world.client.of(PODS) if dig(p, "status", "phase") not in ("Succeeded", "Failed")]


def of_index(world: World, index: int) -> Object:
    return next(p for p in living(world) if annotations_of(p)[rules.INDEX] == str(index))


async def end(world: World, pod: Object, phase: str = "Succeeded", code: int = 0, wait_s: float = 1.0) -> None:
    terminated = {"exitCode": code, "finishedAt": format_time(world.clock.now())}
    status = {"name": "c", "restartCount": 0, "state": {"terminated": terminated}}
    set_pod_status(world.client, pod, phase=phase, containerStatuses=[status])
    await world.advance(wait_s)


def status_of(world: World, made: Object) -> Object:
    found = dict(world.client.look(JOBS, made)["status"])
    for field in ("conditions", "startTime", "completionTime"):
        found.pop(field, None)
    return found


async def test_a_job_runs_its_pods_and_is_complete(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(completions=3, parallelism=2))
        await world.advance(1)
        pods = living(world)
        assert len(pods) == 2
        assert all(metadata(p)["finalizers"] == [rules.FINALIZER] for p in pods)
        assert dig(controller_of(pods[0]), "kind") == "Job"
        assert status_of(world, made) == {"active": 2, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
        for _ in range(3):
            await end(world, living(world)[0])
        told = world.client.look(JOBS, made)
        assert conditions(told) == DONE
        assert status_of(world, made) == {"succeeded": 3, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
        assert told["status"]["completionTime"]
        assert len(world.client.of(PODS)) == 3
        assert all("finalizers" not in metadata(p) for p in world.client.of(PODS))
        assert [r for _, r, _ in await world.events()] == ["SuccessfulCreate"] * 3 + ["Completed"]


async def test_no_completions_wanted_is_complete_at_once(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(completions=0))
        await world.advance(1)
        assert conditions(world.client.look(JOBS, made)) == DONE
        assert world.client.of(PODS) == []


async def test_a_work_queue_starts_nothing_after_its_first_success(world: World) -> None:
    async with world.running(*BOTH):
        queue = job(parallelism=2)
        del queue["spec"]["completions"]
        made = await world.put(JOBS, queue)
        await world.advance(1)
        await end(world, living(world)[0])
        assert len(living(world)) == 1
        await end(world, living(world)[0])
        assert conditions(world.client.look(JOBS, made)) == DONE
        assert status_of(world, made)["succeeded"] == 2


async def test_a_failed_pod_is_replaced_after_10_s_then_20_s(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job())
        for delay_s in (10, 20):
            await world.advance(1)
            await end(world, living(world)[0], "Failed", 1)
            await world.advance(delay_s - 2)
            assert living(world) == []
            await world.advance(2)
            assert len(living(world)) == 1
        assert status_of(world, made)["failed"] == 2


async def test_too_many_failures_end_the_job(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(backoffLimit=0, parallelism=2, completions=2))
        await world.advance(1)
        first, second = living(world)
        ready_pod(world.client, second)
        await end(world, first, "Failed", 1)
        reason = ("True", "BackoffLimitExceeded")
        assert conditions(world.client.look(JOBS, made)) == {"FailureTarget": reason}
        assert is_deleting(world.client.look(PODS, second))
        await world.client.delete(PODS, name_of(second), namespace="shop", grace_s=0)
        await world.advance(1)
        assert conditions(world.client.look(JOBS, made)) == {"FailureTarget": reason, "Failed": reason}
        assert status_of(world, made) == {"failed": 2, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
        assert (
            "Warning",
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        ) in await world.events()


async def test_restarts_in_place_count_towards_the_limit(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(restart="OnFailure", backoffLimit=2))
        await world.advance(1)
        status = {"name": "c", "restartCount": 2, "state": {"waiting": {}}}
        set_pod_status(world.client, living(world)[0], phase="Running", containerStatuses=[status])
        await world.advance(3)
        assert conditions(world.client.look(JOBS, made))["Failed"] == ("True", "BackoffLimitExceeded")


async def test_a_job_longer_active_than_its_deadline_fails(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(activeDeadlineSeconds=30))
        await world.advance(29)
        assert conditions(world.client.look(JOBS, made)) == {}
        await world.advance(3)
        assert conditions(world.client.look(JOBS, made))["Failed"] == ("True", "DeadlineExceeded")
        assert world.client.of(PODS) == []


async def test_suspended_and_resumed(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(suspend=True))
        await world.advance(1)
        assert living(world) == []
        assert conditions(world.client.look(JOBS, made)) == {"Suspended": ("True", "JobSuspended")}
        assert "startTime" not in world.client.look(JOBS, made)["status"]
        await world.edit(JOBS, made, "spec", "suspend", value=False)
        await world.advance(1)
        assert len(living(world)) == 1
        assert conditions(world.client.look(JOBS, made)) == {"Suspended": ("False", "JobResumed")}
        assert world.client.look(JOBS, made)["status"]["startTime"]
        await world.edit(JOBS, made, "spec", "suspend", value=True)
        await world.advance(1)
        assert world.client.of(PODS) == []
        assert status_of(world, made).get("failed") is None
        assert {r for _, r, _ in await world.events()} >= {"Suspended", "Resumed"}


async def test_less_parallelism_deletes_the_surplus_without_counting_it(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(parallelism=3, completions=5))
        await world.advance(1)
        await world.edit(JOBS, made, "spec", "parallelism", value=1)
        await world.advance(1)
        assert len(world.client.of(PODS)) == 1
        assert status_of(world, made) == {"active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}


async def test_indexed_pods_know_their_index(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(completionMode="Indexed", completions=3, parallelism=2))
        await world.advance(1)
        first, second = (of_index(world, n) for n in (0, 1))
        assert name_of(first).startswith("j-0-")
        assert labels_of(second)[rules.INDEX] == "1"
        assert second["spec"]["hostname"] == "j-1"
        field = {"fieldRef": {"fieldPath": f"metadata.labels['{rules.INDEX}']"}}
        assert second["spec"]["containers"][0]["env"] == [{"name": "JOB_COMPLETION_INDEX", "valueFrom": field}]
        await end(world, second)
        assert status_of(world, made)["completedIndexes"] == "1"
        assert {annotations_of(p)[rules.INDEX] for p in living(world)} == {"0", "2"}
        await end(world, of_index(world, 2))
        await end(world, of_index(world, 0))
        assert (status_of(world, made)["completedIndexes"], status_of(world, made)["succeeded"]) == ("0-2", 3)
        assert conditions(world.client.look(JOBS, made)) == DONE


async def test_each_index_has_its_own_back_off(world: World) -> None:
    async with world.running(*BOTH):
        spec = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1}
        made = await world.put(JOBS, job(**spec))  # type: ignore[arg-type]
        await world.advance(1)
        await end(world, of_index(world, 0), "Failed", 1)
        await world.advance(11)
        again = of_index(world, 0)
        assert annotations_of(again)[rules.INDEX_FAILURES] == "1"
        await end(world, again, "Failed", 1)
        assert status_of(world, made)["failedIndexes"] == "0"
        await end(world, of_index(world, 1))
        assert conditions(world.client.look(JOBS, made))["Failed"] == ("True", "FailedIndexes")
        told = status_of(world, made)
        assert (told["failed"], told["succeeded"], told["completedIndexes"]) == (2, 1, "1")


async def test_too_many_failed_indexes_end_the_job(world: World) -> None:
    async with world.running(*BOTH):
        spec = {"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 0}
        made = await world.put(JOBS, job(**spec, maxFailedIndexes=0))  # type: ignore[arg-type]
        await world.advance(1)
        await end(world, of_index(world, 2), "Failed", 1, wait_s=3)
        assert conditions(world.client.look(JOBS, made))["Failed"] == ("True", "MaxFailedIndexesExceeded")


async def test_a_success_policy_ends_the_job_early(world: World) -> None:
    async with world.running(*BOTH):
        policy = {"rules": [{"succeededIndexes": "1"}]}
        spec = {"completionMode": "Indexed", "completions": 3, "parallelism": 3}
        made = await world.put(JOBS, job(**spec, successPolicy=policy))  # type: ignore[arg-type]
        await world.advance(1)
        await end(world, of_index(world, 1), wait_s=3)
        told = world.client.look(JOBS, made)
        reason = ("True", "SuccessPolicy")
        assert conditions(told) == {"SuccessCriteriaMet": reason, "Complete": reason}
        assert told["status"]["conditions"][0]["message"] == "Matched rules at index 0"
        assert len(world.client.of(PODS)) == 1


async def test_a_failure_that_is_ignored_does_not_count(world: World) -> None:
    async with world.running(*BOTH):
        pattern = {"type": "DisruptionTarget", "status": "True"}
        policy = {"rules": [{"action": "Ignore", "onPodConditions": [pattern]}]}
        made = await world.put(JOBS, job(backoffLimit=0, podFailurePolicy=policy))
        await world.advance(1)
        set_pod_status(world.client, living(world)[0], conditions=[pattern])
        await end(world, living(world)[0], "Failed", 1)
        await world.advance(15)
        assert len(living(world)) == 1
        told = {"active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
        assert status_of(world, made) == told


async def test_an_exit_code_can_fail_the_job(world: World) -> None:
    async with world.running(*BOTH):
        codes = {"containerName": "c", "operator": "In", "values": [42]}
        policy = {"rules": [{"action": "FailJob", "onExitCodes": codes}]}
        made = await world.put(JOBS, job(podFailurePolicy=policy))
        await world.advance(1)
        failed = living(world)[0]
        await end(world, failed, "Failed", 42)
        told = world.client.look(JOBS, made)
        assert conditions(told)["Failed"] == ("True", "PodFailurePolicy")
        message = (
            f"Container c for pod shop/{name_of(failed)} failed with exit code 42 matching FailJob rule at index 0"
        )
        assert told["status"]["conditions"][-1]["message"] == message


@pytest.mark.parametrize(("policy", "replaced"), [("TerminatingOrFailed", True), ("Failed", False)])
async def test_when_a_terminating_pod_is_replaced(world: World, policy: str, replaced: bool) -> None:
    async with world.running(*BOTH):
        await world.put(JOBS, job(podReplacementPolicy=policy))
        await world.advance(1)
        [leaving] = living(world)
        ready_pod(world.client, leaving)
        await world.client.delete(PODS, name_of(leaving), namespace="shop")
        await world.advance(60)
        assert len([p for p in living(world) if not is_deleting(p)]) == replaced
        set_pod_status(world.client, leaving, phase="Failed")
        await world.client.delete(PODS, name_of(leaving), namespace="shop", grace_s=0)
        await world.advance(60)
        assert len([p for p in living(world) if not is_deleting(p)]) == 1


async def test_a_crash_between_counting_and_releasing_counts_once(world: World) -> None:
    made = job(completions=2, parallelism=2)
    async with world.running(*BOTH):
        made = await world.put(JOBS, made)
        await world.advance(1)
        first = living(world)[0]
    # The process dies after it has written the UID, before the finalizer goes; the pod ends meanwhile.
    status = {**world.client.look(JOBS, made)["status"], "active": 1}
    status["uncountedTerminatedPods"] = {"succeeded": [first["metadata"]["uid"]]}
    world.client.overwrite(JOBS, replace_in(world.client.look(JOBS, made), ("status",), status))
    set_pod_status(world.client, first, phase="Succeeded")
    async with world.running(*BOTH):
        await world.advance(1)
        assert status_of(world, made)["succeeded"] == 1
        assert status_of(world, made)["uncountedTerminatedPods"] == {}


async def test_finalizers_do_not_outlive_the_job(world: World) -> None:
    async with world.running(*BOTH):
        await world.put(JOBS, job())
        await world.advance(1)
        await world.client.delete(JOBS, "j", namespace="shop")
        await world.advance(1)
        [orphan] = world.client.of(PODS)
        assert "finalizers" not in metadata(orphan)


async def test_one_managed_by_another_controller_is_left_alone(world: World) -> None:
    async with world.running(*BOTH):
        made = await world.put(JOBS, job(managedBy="example.com/other"))
        await world.advance(5)
        assert world.client.of(PODS) == []
        assert "status" not in world.client.look(JOBS, made)


async def test_a_refused_pod_is_tried_again_later(world: World) -> None:
    world.client.refuse = lambda verb, resource, obj: (
        errors.forbidden("pods", "j-", "quota") if (verb, resource) == ("create", PODS) else None
    )
    async with world.running(*BOTH):
        await world.put(JOBS, job())
        await world.advance(0.5)
        world.client.refuse = lambda *args: None
        await world.advance(3)
        assert len(living(world)) == 1
        assert ("Warning", "FailedCreate") in [event[:2] for event in await world.events()]


# Rules


@pytest.mark.parametrize(
    ("text", "indexes"),
    [("", set()), ("0-2", {0, 1, 2}), ("1,3,4", {1, 3, 4}), ("0-2,7,8-20", {0, 1, 2, 7, 8, 9}), ("x,1", {1})],
)
def test_parse_indexes_below_10(text: str, indexes: set[int]) -> None:
    assert parse_indexes(text, 10) == indexes


@pytest.mark.parametrize(
    ("indexes", "text"),
    [(set(), ""), ({5}, "5"), ({1, 2}, "1,2"), ({1, 2, 3}, "1-3"), ({0, 2, 3, 5, 6, 7}, "0,2,3,5-7")],
)
def test_format_indexes(indexes: set[int], text: str) -> None:
    assert format_indexes(indexes) == text


def ended(at: float, **more: Any) -> Object:
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": format_time(at)}
    meta = {"name": "p", "namespace": "shop", "creationTimestamp": format_time(NOW)}
    return {"metadata": meta, "status": {"phase": "Failed", "conditions": [ready]}, **more}


@pytest.mark.parametrize(("failures", "left_s"), [(0, 0), (1, 10), (2, 20), (3, 40), (6, 320), (7, 600), (50, 600)])
def test_the_back_off_doubles_from_10_s_to_600_s(failures: int, left_s: float) -> None:
    assert rules.Backoff(failures, NOW).left_s(NOW) == left_s


def test_a_success_resets_the_back_off_but_for_later_failures() -> None:
    before = rules.Backoff(4, NOW - 100)
    assert before.after([ended(NOW)], []) == rules.Backoff()
    assert before.after([], [ended(NOW)]) == rules.Backoff(5, NOW)
    assert before.after([ended(NOW)], [ended(NOW - 5), ended(NOW + 7)]) == rules.Backoff(1, NOW + 7)


def test_when_a_pod_ended() -> None:
    assert rules.finished_at(ended(NOW + 3)) == NOW + 3
    status = {"name": "c", "state": {"terminated": {"finishedAt": format_time(NOW + 1)}}}
    assert rules.finished_at(ended(NOW + 3, status={"containerStatuses": [status]})) == NOW + 1
    deleted = ended(NOW, status={"phase": "Running"})
    deleted["metadata"] |= {"deletionTimestamp": format_time(NOW + 40), "deletionGracePeriodSeconds": 30}
    assert rules.finished_at(deleted) == NOW + 10


@pytest.mark.parametrize(
    ("rule", "succeeded", "met"),
    [
        ({"succeededCount": 2}, {0, 3}, True),
        ({"succeededCount": 3}, {0, 3}, False),
        ({"succeededIndexes": "0-2"}, {0, 1, 2}, True),
        ({"succeededIndexes": "0-2"}, {0, 1}, False),
        ({"succeededIndexes": "0-2", "succeededCount": 2}, {0, 1, 7}, True),
    ],
)
def test_success_rules(rule: Object, succeeded: set[int], met: bool) -> None:
    policy = job(completions=10, successPolicy={"rules": [rule]})
    assert (rules.met_success_rule(policy, succeeded) == 0) is met


def test_surplus_pods_of_an_indexed_job_are_twins_and_strays() -> None:
    def indexed(name: str, index: str | None) -> Object:
        notes = {} if index is None else {rules.INDEX: index}
        return {"metadata": {"name": name, "uid": name, "annotations": notes}, "status": {"phase": "Running"}}

    pods = [indexed("a", "0"), indexed("b", "0"), indexed("c", None), indexed("d", "9"), indexed("e", "1")]
    doomed = rules.surplus_pods(job(completionMode="Indexed", completions=2), pods, 0, list)
    assert sorted(names(doomed)) == ["a", "c", "d"]
