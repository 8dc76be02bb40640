"""HorizontalPodAutoscalers: what they read, what they make of it, and what holds them back."""

from collections.abc import Mapping

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import DEPLOYMENTS, PODS
from kone.apimachinery.objects import Object, dig, find_condition
from kone.apimachinery.timestamps import format_time
from kone.controllers.controller import Settings
from kone.controllers.hpa import HPA_CONTROLLER, HPAS
from kone.controllers.hpa_metrics import POD_METRICS, duration_s
from kone.controllers.hpa_rules import (
    Memory,
    MetricError,
    PodMetric,
    Sample,
    Tolerances,
    by_average,
    by_share,
    by_total,
    by_utilization,
    down_limit,
    normalize,
    up_limit,
)
from tests.controllers.world import World, conditions
from tests.fakes import ready_pod

NOW = 1_700_000_000.0
CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}


def autoscaler(name: str = "h", *metrics: Object, **spec: object) -> Object:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": 1,
            "maxReplicas": 10,
            "metrics": list(metrics) or [CPU],
            **spec,
        },
    }


def deployment(replicas: int) -> Object:
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}}
    meta = {"name": "web", "namespace": "shop"}
    status = {"replicas": replicas}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec, "status": status}


def pod(name: str) -> Object:
    container = {"name": "c", "resources": {"requests": {"cpu": "100m"}}}
    meta = {"name": name, "namespace": "shop", "labels": {"app": "web"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}


def settings(answers: Mapping[str, Object] | None = None) -> Settings:
    async def get_path(path: str, query: Mapping[str, str]) -> Object:
        if answers is None or path not in answers:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        return answers[path]

    known = {("apps/v1", "Deployment"): (DEPLOYMENTS, True)}
    return Settings(resource_of_kind=lambda api, kind: known.get((api, kind)), get_path=get_path)


def use(world: World, name: str, cpu: str) -> None:
    """The metrics API tells of a pod."""
    measured = {
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "timestamp": format_time(world.clock.now()),
        "window": "15s",
        "containers": [{"name": "c", "usage": {"cpu": cpu}}],
    }
    try:
        world.client.put(POD_METRICS, measured)
    except StatusError:
        world.client.overwrite(POD_METRICS, measured)


async def running_pods(world: World, cpu: str, *names: str) -> None:
    for name in names:
        ready_pod(world.client, await world.put(PODS, pod(name)))
    await world.advance(400)
    for name in names:
        use(world, name, cpu)


def replicas(world: World) -> int:
    return int(world.client.of(DEPLOYMENTS)[0]["spec"]["replicas"])


async def test_scales_up_to_what_the_use_asks_for(world: World) -> None:
    async with world.running(HPA_CONTROLLER, settings=settings()):
        await world.put(DEPLOYMENTS, deployment(2))
        await running_pods(world, "90m", "p1", "p2")
        hpa = await world.put(HPAS, autoscaler())
        assert replicas(world) == 4
        status = world.client.look(HPAS, hpa)["status"]
        assert (status["currentReplicas"], status["desiredReplicas"], status["observedGeneration"]) == (2, 4, 1)
        assert status["currentMetrics"] == [
            {
                "type": "Resource",
                "resource": {"name": "cpu", "current": {"averageUtilization": 90, "averageValue": "90m"}},
            }
        ]
        assert status["lastScaleTime"] == format_time(world.clock.now())
        assert conditions({"status": status}) == {
            "AbleToScale": ("True", "SucceededRescale"),
            "ScalingActive": ("True", "ValidMetricFound"),
            "ScalingLimited": ("False", "DesiredWithinRange"),
            "ScaledToZero": ("False", "NotScaledToZero"),
        }
        message = "New size: 4; reason: cpu resource utilization (percentage of request) above target"
        assert await world.events() == [("Normal", "SuccessfulRescale", message)]


async def test_scales_down_only_after_five_minutes(world: World) -> None:
    async with world.running(HPA_CONTROLLER, settings=settings()):
        await world.put(DEPLOYMENTS, deployment(2))
        await running_pods(world, "50m", "p1", "p2")
        hpa = await world.put(HPAS, autoscaler())
        for name in ("p1", "p2"):
            use(world, name, "10m")
        await world.advance(285)
        assert replicas(world) == 2
        able = find_condition(world.client.look(HPAS, hpa), "AbleToScale") or {}
        assert able["reason"] == "ScaleDownStabilized"
        await world.advance(45)
        assert replicas(world) == 1
        assert (await world.events("SuccessfulRescale"))[0][2] == "New size: 1; reason: All metrics below target"


@pytest.mark.parametrize(
    ("current", "limits", "wanted", "why"),
    [
        (5, {"maxReplicas": 2}, 2, "Current number of replicas above Spec.MaxReplicas"),
        (1, {"minReplicas": 2}, 2, "Current number of replicas below Spec.MinReplicas"),
    ],
)
async def test_limits_hold_without_any_metric(
    world: World, current: int, limits: Object, wanted: int, why: str
) -> None:
    async with world.running(HPA_CONTROLLER, settings=settings()):
        await world.put(DEPLOYMENTS, deployment(current))
        await world.put(HPAS, autoscaler(**limits))
        assert replicas(world) == wanted
        message = f"New size: {wanted}; reason: {why}"
        assert await world.events() == [("Normal", "SuccessfulRescale", message)]


async def test_without_a_metrics_api_nothing_changes_and_the_reason_is_told(world: World) -> None:
    async with world.running(HPA_CONTROLLER, settings=settings()):
        await world.put(DEPLOYMENTS, deployment(1))
        hpa = await world.put(HPAS, autoscaler())
        why = "unable to get metrics for resource cpu: no metrics returned from resource metrics API"
        why = f"failed to get cpu utilization: {why}"
        condition = find_condition(world.client.look(HPAS, hpa), "ScalingActive") or {}
        assert (condition["reason"], condition["message"]) == (
            "FailedGetResourceMetric",
            f"the HPA was unable to compute the replica count: {why}",
        )
        first = f"invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: {why}"
        assert await world.events() == [
            ("Warning", "FailedGetResourceMetric", why),
            ("Warning", "FailedComputeMetricsReplicas", first),
        ]
        status = world.client.look(HPAS, hpa)["status"]
        assert (status["currentReplicas"], status["desiredReplicas"]) == (1, 0)


async def test_a_target_at_zero_is_left_alone(world: World) -> None:
    async with world.running(HPA_CONTROLLER, settings=settings()):
        await world.put(DEPLOYMENTS, deployment(0))
        hpa = await world.put(HPAS, autoscaler())
        found = conditions(world.client.look(HPAS, hpa))
        assert found == {
            "AbleToScale": ("True", "SucceededGetScale"),
            "ScalingActive": ("False", "ScalingDisabled"),
        }
        assert replicas(world) == 0


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"apiVersion": "apps/v1", "kind": "Deployment", "name": "no"}, 'deployments.apps "no" not found'),
        ({"apiVersion": "x.io/v1", "kind": "X", "name": "x"}, 'no matches for kind "X" in group "x.io"'),
    ],
)
async def test_a_target_that_is_not_there_is_told_of(world: World, target: Object, why: str) -> None:
    async with world.running(HPA_CONTROLLER, settings=settings()):
        hpa = await world.put(HPAS, autoscaler(scaleTargetRef=target))
        condition = find_condition(world.client.look(HPAS, hpa), "AbleToScale") or {}
        message = f"the HPA controller was unable to get the target's current scale: {why}"
        assert (condition["status"], condition["reason"], condition["message"]) == ("False", "FailedGetScale", message)
        assert await world.events() == [("Warning", "FailedGetScale", why)]


async def test_two_autoscalers_of_the_same_pods_do_nothing(world: World) -> None:
    async with world.running(HPA_CONTROLLER, settings=settings()):
        await world.put(DEPLOYMENTS, deployment(1))
        await running_pods(world, "90m", "p1")
        await world.put(HPAS, autoscaler("a", maxReplicas=1))
        hpa = await world.put(HPAS, autoscaler("b"))
        assert conditions(world.client.look(HPAS, hpa))["ScalingActive"] == ("False", "AmbiguousSelector")
        assert replicas(world) == 1


async def test_a_metric_that_fails_keeps_others_from_scaling_down_only(world: World) -> None:
    broken = {"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "Value", "value": "1"}}}
    async with world.running(HPA_CONTROLLER, settings=settings()):
        await world.put(DEPLOYMENTS, deployment(2))
        await running_pods(world, "10m", "p1", "p2")
        hpa = await world.put(HPAS, autoscaler("h", CPU, broken))
        await world.advance(400)
        assert replicas(world) == 2
        assert conditions(world.client.look(HPAS, hpa))["ScalingActive"] == ("False", "FailedGetExternalMetric")
        for name in ("p1", "p2"):
            use(world, name, "90m")
        await world.advance(15)
        assert replicas(world) == 4


async def test_custom_metrics_of_pods_and_objects_and_external_ones(world: World) -> None:
    pods_metric = {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"averageValue": "10"}}}
    object_metric = {
        "type": "Object",
        "object": {
            "metric": {"name": "hits"},
            "describedObject": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "target": {"type": "Value", "value": "100"},
        },
    }
    external = {
        "type": "External",
        "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "30"}},
    }
    stamp = format_time(NOW)
    rates = [{"describedObject": {"name": name}, "timestamp": stamp, "value": "30"} for name in ("p1", "p2")]
    custom = "/apis/custom.metrics.k8s.io"
    answers: dict[str, Object] = {
        custom: {"preferredVersion": {"version": "v1beta2"}},
        f"{custom}/v1beta2/namespaces/shop/pods/*/rps": {"items": rates},
        f"{custom}/v1beta2/namespaces/shop/deployments.apps/web/hits": {"items": [{"value": "250"}]},
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/queue": {"items": [{"value": "50"}, {"value": "60"}]},
    }
    async with world.running(HPA_CONTROLLER, settings=settings(answers)):
        await world.put(DEPLOYMENTS, deployment(2))
        await running_pods(world, "0", "p1", "p2")
        hpa = await world.put(HPAS, autoscaler("h", pods_metric, object_metric, external, maxReplicas=20))
        # 3 times the rate, 2.5 times the hits, 110 / 30 for the queue: 6, 5 and 4; but at most 4 at once.
        status = world.client.look(HPAS, hpa)["status"]
        assert [metric["type"] for metric in status["currentMetrics"]] == ["Pods", "Object", "External"]
        assert status["currentMetrics"][0]["pods"]["current"] == {"averageValue": "30"}
        assert status["currentMetrics"][1]["object"]["current"] == {"value": "250"}
        assert status["currentMetrics"][2]["external"]["current"] == {"averageValue": "55"}
        assert replicas(world) == 4
        assert conditions({"status": status})["ScalingLimited"] == ("True", "ScaleUpLimit")


async def test_to_zero_and_back_by_an_external_metric(world: World) -> None:
    external = {
        "type": "External",
        "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "10"}},
    }
    path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/queue"
    answers: dict[str, Object] = {path: {"items": [{"value": "0"}]}}
    rules = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 9, "periodSeconds": 15}]}
    quick = {"scaleDown": rules, "scaleUp": rules}
    async with world.running(HPA_CONTROLLER, settings=settings(answers)):
        await world.put(DEPLOYMENTS, deployment(1))
        await running_pods(world, "0", "p1")
        hpa = await world.put(HPAS, autoscaler("h", external, minReplicas=0, behavior=quick))
        assert replicas(world) == 0
        assert conditions(world.client.look(HPAS, hpa))["ScaledToZero"] == ("True", "ScaledToZero")
        answers[path] = {"items": [{"value": "15"}]}
        await world.advance(15)
        assert replicas(world) == 2
        assert dig(world.client.look(HPAS, hpa), "status", "desiredReplicas") == 2


# Arithmetic


def measured(**values: int) -> dict[str, PodMetric]:
    return {name: PodMetric(value, NOW - 10, 15) for name, value in values.items()}


def state(
    name: str, *, ready: bool = True, age_s: float = 1000, phase: str = "Running", since_s: float = 900
) -> Object:
    condition = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "lastTransitionTime": format_time(NOW - since_s),
    }
    status = {"phase": phase, "conditions": [condition], "startTime": format_time(NOW - age_s)}
    spec = {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]}
    return {"metadata": {"name": name}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("use_of", "pods", "current", "wanted"),
    [
        ({"a": 90, "b": 80, "c": 70, "d": 80}, [state(n) for n in "abcd"], 4, 7),
        ({"a": 52, "b": 52}, [state("a"), state("b")], 2, 2),
        ({"a": 20, "b": 20}, [state("a"), state("b")], 2, 1),
        # b is not measured: idle while adding would be rash, at its whole request while removing would.
        ({"a": 100}, [state("a"), state("b")], 2, 2),
        ({"a": 10}, [state("a"), state("b")], 2, 2),
        # b only starts: its use does not count, and it will take its share.
        ({"a": 100, "b": 900}, [state("a"), state("b", ready=False, age_s=60, since_s=60)], 2, 2),
        ({"a": 100}, [state("a"), state("b", phase="Pending")], 2, 2),
        # c is measured and ready, but only for a moment.
        ({"a": 100, "b": 100, "c": 900}, [state("a"), state("b"), state("c", age_s=60, since_s=5)], 3, 4),
        ({"a": 100}, [state("a"), state("x", phase="Failed")], 1, 2),
    ],
)
def test_replicas_by_utilization(use_of: dict[str, int], pods: list[Object], current: int, wanted: int) -> None:
    proposal = by_utilization(measured(**use_of), pods, current, 50, "cpu", "", Tolerances(), NOW)
    assert proposal.replicas == wanted


def test_requests_must_be_there() -> None:
    bare = state("a")
    bare["spec"]["containers"][0]["resources"] = {}
    with pytest.raises(MetricError, match="missing request for cpu in container c of Pod a"):
        by_utilization(measured(a=5), [bare], 1, 50, "cpu", "", Tolerances(), NOW)
    with pytest.raises(MetricError, match="container x not found in Pod a"):
        by_utilization(measured(a=5), [state("a")], 1, 50, "cpu", "x", Tolerances(), NOW)
    with pytest.raises(MetricError, match="did not receive metrics for targeted pods"):
        by_average(measured(a=5), [state("a", phase="Pending")], 1, 50, "cpu", Tolerances(), NOW)


def test_replicas_by_values() -> None:
    pods = [state("a"), state("b")]
    assert by_average(measured(a=30, b=50), pods, 2, 20, "", Tolerances(), NOW).replicas == 4
    assert by_total(300, 100, 2, pods, Tolerances()).replicas == 6
    assert by_total(105, 100, 2, pods, Tolerances()).replicas == 2
    assert by_total(105, 100, 2, pods, Tolerances(up=0.01)).replicas == 3
    assert by_total(150, 100, 0, [], Tolerances()).replicas == 2
    assert by_share(110, 30, 2, Tolerances()).replicas == 4
    assert by_share(62, 30, 2, Tolerances()).replicas == 2


@pytest.mark.parametrize(
    ("current", "desired", "replicas", "reason"),
    [
        (2, 3, 3, "DesiredWithinRange"),
        (2, 9, 4, "ScaleUpLimit"),
        (8, 12, 10, "TooManyReplicas"),
        (1, 0, 1, "TooFewReplicas"),
    ],
)
def test_limits_without_behavior(current: int, desired: int, replicas: int, reason: str) -> None:
    verdict = normalize(autoscaler(), Memory(), current, desired, NOW)
    assert (verdict.replicas, verdict.reason) == (replicas, reason)


def test_policies_limit_the_change_in_a_period() -> None:
    pods = {"type": "Pods", "value": 4, "periodSeconds": 60}
    percent = {"type": "Percent", "value": 50, "periodSeconds": 60}
    memory = Memory(scaled_up=[Sample(2, NOW - 30), Sample(5, NOW - 90)])
    assert up_limit({"policies": [pods, percent]}, memory, 12, NOW) == 15
    assert up_limit({"policies": [pods, percent], "selectPolicy": "Min"}, memory, 12, NOW) == 14
    assert up_limit({"policies": [pods], "selectPolicy": "Disabled"}, memory, 12, NOW) == 12
    assert down_limit({"policies": [pods, percent]}, Memory(), 12, NOW) == 6
    assert down_limit({"policies": [pods, percent], "selectPolicy": "Min"}, Memory(), 12, NOW) == 8


def test_windows_hold_against_peaks_and_dips() -> None:
    rules = {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 9, "periodSeconds": 15}]}
    behavior = {"scaleUp": rules, "scaleDown": rules}
    hpa = autoscaler(behavior=behavior)
    peak = Memory(recommendations=[Sample(3, NOW - 30)])
    verdict = normalize(hpa, peak, 3, 8, NOW)
    assert (verdict.replicas, verdict.able[0]) == (3, "ScaleUpStabilized")
    dip = Memory(recommendations=[Sample(5, NOW - 30)])
    verdict = normalize(hpa, dip, 6, 2, NOW)
    assert (verdict.replicas, verdict.able[0]) == (5, "ScaleDownStabilized")
    assert normalize(hpa, dip, 6, 2, NOW + 100).replicas == 2


def test_durations() -> None:
    assert (duration_s("15s"), duration_s("1m30.5s"), duration_s("250ms")) == (15.0, 90.5, 0.25)
