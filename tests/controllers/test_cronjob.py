"""CronJobs on a clock that tests move: schedules, zones, policies, missed starts, history; and TTLs of Jobs."""

from datetime import UTC, datetime

import pytest

from kone.apimachinery import errors
from kone.apimachinery.kinds import CRONJOBS, JOBS
from kone.apimachinery.objects import Object, annotations_of, controller_of, dig, labels_of, name_of
from kone.apimachinery.timestamps import format_time
from kone.controllers.cronjob import CRONJOB_CONTROLLER, SCHEDULED_AT, missed_since, next_look_s, schedule_of
from kone.controllers.ttl_after_finished import TTL_AFTER_FINISHED_CONTROLLER
from tests.controllers.world import World
from tests.fakes import names

START = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)  # the fake clock's first moment


def cron_job(schedule: str = "* * * * *", **spec: object) -> Object:
    template = {"metadata": {"labels": {"from": "go"}, "annotations": {"k": "v"}}, "spec": {"suspend": True}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "go", "namespace": "shop", "creationTimestamp": format_time(START.timestamp())},
        "spec": {
            "schedule": schedule,
            "concurrencyPolicy": "Allow",
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 1,
            "jobTemplate": template,
            **spec,
        },
    }


async def finish(world: World, job: Object, kind: str = "Complete") -> None:
    now = format_time(world.clock.now())
    condition = {"type": kind, "status": "True", "lastTransitionTime": now}
    status = {"conditions": [condition], "startTime": now, "completionTime": now}
    world.client.overwrite(JOBS, {**world.client.look(JOBS, job), "status": status})
    await world.settle()


async def test_each_minute_has_its_job(world: World) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        made = await world.put(CRONJOBS, cron_job())
        await world.advance(39)
        assert world.client.of(JOBS) == []
        await world.advance(2)
        [job] = world.client.of(JOBS)
        assert name_of(job) == f"go-{int(START.timestamp()) // 60 + 1}"
        assert labels_of(job) == {"from": "go"}
        assert annotations_of(job) == {"k": "v", SCHEDULED_AT: "2023-11-14T22:14:00Z"}
        assert dig(controller_of(job), "kind") == "CronJob"
        status = world.client.look(CRONJOBS, made)["status"]
        assert status["lastScheduleTime"] == "2023-11-14T22:14:00Z"
        assert [ref["name"] for ref in status["active"]] == [name_of(job)]
        await world.advance(60)
        assert len(world.client.of(JOBS)) == 2
        assert ("Normal", "SuccessfulCreate", f"Created job {name_of(job)}") in await world.events()


async def test_a_finished_job_leaves_the_active_list(world: World) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        made = await world.put(CRONJOBS, cron_job())
        await world.advance(41)
        [job] = world.client.of(JOBS)
        await finish(world, job)
        status = world.client.look(CRONJOBS, made)["status"]
        assert "active" not in status
        assert status["lastSuccessfulTime"] >= "2023-11-14T22:14:00Z"
        message = f"Saw completed job: {name_of(job)}, condition: Complete"
        assert ("Normal", "SawCompletedJob", message) in await world.events()


async def test_only_the_newest_finished_jobs_are_kept(world: World) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        await world.put(CRONJOBS, cron_job(successfulJobsHistoryLimit=1, failedJobsHistoryLimit=0))
        for kind in ("Complete", "Complete", "Failed"):
            await world.advance(60)
            running = [job for job in world.client.of(JOBS) if not job.get("status")]
            await finish(world, running[0], kind)
        assert names(world.client.of(JOBS)) == [f"go-{int(START.timestamp()) // 60 + 2}"]


@pytest.mark.parametrize(("policy", "count"), [("Allow", 3), ("Forbid", 1), ("Replace", 1)])
async def test_concurrency_policies(world: World, policy: str, count: int) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        await world.put(CRONJOBS, cron_job(concurrencyPolicy=policy))
        await world.advance(41)
        first = names(world.client.of(JOBS))
        await world.advance(120)
        jobs = names(world.client.of(JOBS))
        assert len(jobs) == count
        assert (jobs == first) is (policy == "Forbid")


async def test_suspended_starts_nothing(world: World) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        made = await world.put(CRONJOBS, cron_job(suspend=True))
        await world.advance(600)
        assert world.client.of(JOBS) == []
        assert "status" not in world.client.look(CRONJOBS, made)


async def test_times_missed_while_kone_was_down_start_one_job(world: World) -> None:
    await world.put(CRONJOBS, cron_job())
    await world.clock.advance(10 * 60)
    async with world.running(CRONJOB_CONTROLLER):
        assert names(world.client.of(JOBS)) == [f"go-{int(START.timestamp()) // 60 + 10}"]
        assert await world.events("TooManyMissedTimes") == []


async def test_many_missed_times_are_told(world: World) -> None:
    await world.put(CRONJOBS, cron_job())
    await world.clock.advance(200 * 60)
    async with world.running(CRONJOB_CONTROLLER):
        assert len(world.client.of(JOBS)) == 1
        assert len(await world.events("TooManyMissedTimes")) == 1


async def test_a_start_too_late_for_its_deadline_is_missed(world: World) -> None:
    await world.put(CRONJOBS, cron_job("0 * * * *", startingDeadlineSeconds=60))
    await world.clock.advance(50 * 60)
    async with world.running(CRONJOB_CONTROLLER):
        assert world.client.of(JOBS) == []
        await world.advance(3600)
        assert len(world.client.of(JOBS)) == 1


async def test_a_changed_schedule_starts_nothing_for_what_has_passed(world: World) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        made = await world.put(CRONJOBS, cron_job("0 0 1 1 *"))
        await world.advance(600)
        await world.edit(CRONJOBS, made, "spec", "schedule", value="*/5 * * * *")
        assert world.client.of(JOBS) == []
        await world.advance(301)
        assert len(world.client.of(JOBS)) == 1


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"schedule": "61 * * * *"}, "UnparseableSchedule"),
        ({"schedule": "59 23 31 2 *"}, "InvalidSchedule"),
        ({"schedule": "TZ=UTC * * * * *"}, "UnsupportedSchedule"),
    ],
)
async def test_schedules_that_slipped_through_validation_are_told(world: World, spec: Object, reason: str) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        await world.put(CRONJOBS, cron_job(**spec))
        assert [event[1] for event in await world.events()][:1] == [reason]


async def test_a_refused_job_is_told_and_tried_again(world: World) -> None:
    world.client.refuse = lambda verb, resource, obj: (
        errors.forbidden("jobs.batch", "go", "quota") if (verb, resource) == ("create", JOBS) else None
    )
    async with world.running(CRONJOB_CONTROLLER):
        await world.put(CRONJOBS, cron_job())
        await world.advance(41)
        world.client.refuse = lambda *args: None
        await world.advance(5)
        assert len(world.client.of(JOBS)) == 1
        assert ("Warning", "FailedCreate") in [event[:2] for event in await world.events()]


async def test_a_day_of_cron_jobs_passes_in_no_time(world: World) -> None:
    async with world.running(CRONJOB_CONTROLLER):
        await world.put(CRONJOBS, cron_job("*/5 * * * *", concurrencyPolicy="Allow"))
        for _ in range(24 * 12):
            await world.clock.advance(300)
            for job in world.client.of(JOBS):
                if not job.get("status"):
                    await finish(world, job)
        assert len(await world.events("SuccessfulCreate")) >= 1
        assert len(world.client.of(JOBS)) == 3


# Arithmetic


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("schedule", "now", "latest", "count"),
    [
        ("0 * * * *", "2023-11-14T22:30:00+00:00", None, 0),
        ("0 * * * *", "2023-11-14T23:30:00+00:00", "2023-11-14T23:00:00+00:00", 0),
        ("0 * * * *", "2023-11-15T03:30:00+00:00", "2023-11-15T03:00:00+00:00", 5),
        ("30 6-16/4 * * 1-5", "2023-11-17T11:00:00+00:00", "2023-11-17T10:30:00+00:00", 14),
        ("@every 30m", "2023-11-14T23:50:00+00:00", "2023-11-14T23:43:20+00:00", 3),
    ],
)
def test_missed_times(schedule: str, now: str, latest: str | None, count: int) -> None:
    made = cron_job(schedule)
    missed = missed_since(made, schedule_of(made), at(now), by_deadline=True)
    assert missed.latest == (at(latest) if latest else None)
    assert missed.count == count


def test_a_time_zone_moves_the_schedule() -> None:
    made = cron_job("0 9 * * *", timeZone="Europe/Paris")
    wait_s = next_look_s(made, schedule_of(made), START)
    assert wait_s == pytest.approx((at("2023-11-15T08:00:00+00:00") - START).total_seconds() + 0.1)


# TTL


async def test_a_finished_job_goes_after_its_ttl(world: World) -> None:
    async with world.running(TTL_AFTER_FINISHED_CONTROLLER):
        meta = {"name": "j", "namespace": "shop"}
        spec = {"ttlSecondsAfterFinished": 30}
        made = await world.put(JOBS, {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})
        await world.advance(60)
        await finish(world, made, "Failed")
        await world.advance(29)
        assert "deletionTimestamp" not in world.client.look(JOBS, made)["metadata"]
        await world.advance(2)
        assert world.client.look(JOBS, made)["metadata"]["finalizers"] == ["foregroundDeletion"]
