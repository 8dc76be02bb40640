"""HorizontalPodAutoscalers: every fifteen seconds as many replicas as the metrics ask for, within limits and rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    generation_of,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    replace_in,
)
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.apimachinery.selectors import LabelSelector, from_label_selector, parse_label_selector
from kone.apimachinery.timestamps import format_time
from kone.client.client import EventType, Informer, Objects
from kone.controllers import hpa_rules as rules
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.disruption import selector_text
from kone.controllers.hpa_metrics import Metrics
from kone.controllers.hpa_rules import Memory, MetricError, Proposal

HPAS = GVR("autoscaling", "v2", "horizontalpodautoscalers")
_CONFLICT_RETRIES = 5


class Draft:
    """A status in the making."""

    def __init__(self, hpa: Object, now: float) -> None:
        self.hpa, self.now = hpa, now
        self._before: Object = hpa.get("status") or {}
        self._conditions: list[Object] = [dict(c) for c in self._before.get("conditions") or ()]
        self._counts: Object = {
            name: self._before[name]
            for name in ("currentReplicas", "desiredReplicas", "currentMetrics", "lastScaleTime", "observedGeneration")
            if name in self._before
        }

    def tell(self, kind: str, status: bool, reason: str, message: str) -> None:
        text = "True" if status else "False"
        for condition in self._conditions:
            if condition["type"] == kind:
                break
        else:
            condition = {"type": kind}
            self._conditions.append(condition)
        if condition.get("status") != text:
            condition["lastTransitionTime"] = format_time(self.now)
        condition |= {"status": text, "reason": reason, "message": message}

    def is_true(self, kind: str) -> bool:
        return any(c["type"] == kind and c["status"] == "True" for c in self._conditions)

    def count(self, current: int, desired: int, metrics: Sequence[Object], *, rescaled: bool) -> None:
        last = format_time(self.now) if rescaled else self._before.get("lastScaleTime")
        self._counts = {"desiredReplicas": desired, "currentMetrics": list(metrics) or None}
        if current:
            self._counts["currentReplicas"] = current
        if last is not None:
            self._counts["lastScaleTime"] = last
        self._counts["observedGeneration"] = generation_of(self.hpa)

    @property
    def desired(self) -> int:
        return int(self._counts.get("desiredReplicas", 0))

    @property
    def status(self) -> Object:
        return {**self._counts, "conditions": self._conditions}


@dataclass(frozen=True, slots=True)
class Scaled:
    """The target's scale, and where it is."""

    resource: GVR
    scale: Object
    selector: LabelSelector
    pods: Objects

    @property
    def replicas(self) -> int:
        return int(dig(self.scale, "spec", "replicas", default=0))

    @property
    def observed(self) -> int:
        return int(dig(self.scale, "status", "replicas", default=0))

    @property
    def selector_text(self) -> str:
        return str(dig(self.scale, "status", "selector", default=""))


@dataclass(frozen=True, slots=True)
class Read:
    """What one metric says."""

    proposal: Proposal
    name: str
    status: Object


class Failed(Exception):
    """A reason for the condition ScalingActive, with the text of its cause as the exception's own. `prefix` is said
    before that where all failures are summed up; `condition` in its stead in the condition."""

    def __init__(self, reason: str, why: str, prefix: str = "", condition: str = "") -> None:
        super().__init__(why)
        self.reason, self.prefix, self.condition = reason, prefix, condition or why


class HorizontalPodAutoscalers(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(HPAS)
        self._pods: Informer = ctx.client.informer(PODS)
        self._metrics = Metrics(ctx.client, ctx.settings)
        self._memory: dict[Key, Memory] = {}
        self._selectors: dict[Key, LabelSelector] = {}

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._pods, lambda event, obj, previous: ())
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, hpa: Object, previous: Object | None) -> Iterable[Key]:
        """What changes the status only waits for the next round."""
        if event == "MODIFIED" and previous is not None and generation_of(hpa) == generation_of(previous):
            return ()
        return (key_of(hpa),)

    async def reconcile(self, key: Key) -> Result | None:
        hpa = self.primary.get(*key)
        if hpa is None:
            self._memory.pop(key, None)
            self._selectors.pop(key, None)
            return None
        draft = Draft(hpa, self._ctx.clock.now())
        await self._scale(key, hpa, draft)
        if draft.status != (hpa.get("status") or {}):
            try:
                written = replace_in(hpa, ("status",), draft.status)
                await self._ctx.client.update(HPAS, written, subresource="status")
            except StatusError as error:
                self._event(hpa, "FailedUpdateStatus", str(error))
        return Result(after_s=rules.SYNC_S)

    def _event(self, hpa: Object, reason: str, message: str) -> None:
        self._ctx.recorder.event(hpa, "Warning", reason, message)

    async def _scale(self, key: Key, hpa: Object, draft: Draft) -> None:
        try:
            target = await self._target(hpa)
        except (StatusError, LookupError) as error:
            why = str(error.args[0]) if isinstance(error, LookupError) else str(error)
            self._event(hpa, "FailedGetScale", why)
            message = f"the HPA controller was unable to get the target's current scale: {why}"
            draft.tell("AbleToScale", False, "FailedGetScale", message)
            return
        message = "the HPA controller was able to get the target's current scale"
        draft.tell("AbleToScale", True, "SucceededGetScale", message)
        memory = self._memory.setdefault(key, Memory())
        if not memory.recommendations:
            memory.recommend(target.replicas, 0, draft.now)

        current, least = target.replicas, int(dig(hpa, "spec", "minReplicas", default=1))
        most = int(hpa["spec"]["maxReplicas"])
        statuses: list[Object] = []
        desired, why = current, ""
        was_scaled_to_zero = draft.is_true("ScaledToZero")
        if current == 0 and not (was_scaled_to_zero and (least != 0 or _can_start_from_zero(hpa))):
            message = "scaling is disabled since the replica count of the target is zero"
            draft.tell("ScalingActive", False, "ScalingDisabled", message)
        elif current > most:
            desired, why = most, "Current number of replicas above Spec.MaxReplicas"
        elif 0 < current < least:
            desired, why = least, "Current number of replicas below Spec.MinReplicas"
        else:
            found = await self._read_all(key, hpa, target, draft, statuses)
            if found is None:
                draft.count(current, draft.desired, statuses, rescaled=False)
                return
            proposed, metric = found
            if proposed > current:
                why = f"{metric} above target"
            elif proposed < current:
                why = "All metrics below target"
            verdict = rules.normalize(hpa, memory, current, proposed, draft.now)
            draft.tell("AbleToScale", True, *verdict.able)
            draft.tell("ScalingLimited", verdict.limited, verdict.reason, verdict.message)
            desired = verdict.replicas
            if current == 0 and desired < least:
                desired = least
                why = why or "Current number of replicas below Spec.MinReplicas"
        if desired != current and not await self._rescale(hpa, target, desired, why, draft):
            draft.count(current, draft.desired, statuses, rescaled=False)
            return
        if desired != current:
            memory.remember_change(hpa["spec"].get("behavior"), current, desired, draft.now)
            _tell_of_zero(draft, desired == 0 and least == 0 and _can_start_from_zero(hpa))
        draft.count(current, desired, statuses, rescaled=desired != current)

    # The target

    async def _target(self, hpa: Object) -> Scaled:
        """Raises StatusError, LookupError."""
        reference = hpa["spec"]["scaleTargetRef"]
        api_version, kind = reference.get("apiVersion") or "v1", reference["kind"]
        known = self._ctx.settings.resource_of_kind(api_version, kind)
        if known is None:
            raise LookupError(f'no matches for kind "{kind}" in group "{api_version.rpartition("/")[0]}"')
        namespace = namespace_of(hpa)
        scale = await self._ctx.client.get(known[0], reference["name"], namespace, subresource="scale")
        try:
            selector = parse_label_selector(dig(scale, "status", "selector", default=""))
        except ValueError:
            selector = LabelSelector(nothing=True)
        pods = [pod for pod in self._pods.list(namespace) if selector.matches(labels_of(pod))]
        return Scaled(known[0], scale, selector, pods)

    async def _rescale(self, hpa: Object, target: Scaled, desired: int, why: str, draft: Draft) -> bool:
        client, scale = self._ctx.client, target.scale
        for attempt in range(_CONFLICT_RETRIES):
            try:
                await client.update(target.resource, {**scale, "spec": {"replicas": desired}}, subresource="scale")
                break
            except StatusError as error:
                if error.code == 409 and attempt < _CONFLICT_RETRIES - 1:
                    scale = await client.get(target.resource, name_of(scale), namespace_of(scale), subresource="scale")
                    continue
                self._event(hpa, "FailedRescale", f"New size: {desired}; reason: {why}; error: {error}")
                message = f"the HPA controller was unable to update the target scale: {error}"
                draft.tell("AbleToScale", False, "FailedUpdateScale", message)
                return False
        message = f"the HPA controller was able to update the target scale to {desired}"
        draft.tell("AbleToScale", True, "SucceededRescale", message)
        self._ctx.recorder.event(hpa, "Normal", "SuccessfulRescale", f"New size: {desired}; reason: {why}")
        return True

    # Metrics

    async def _read_all(
        self, key: Key, hpa: Object, target: Scaled, draft: Draft, statuses: list[Object]
    ) -> tuple[int, str] | None:
        """(the most replicas that a metric asks for, that metric); None when it cannot be told, which is told then.

        A metric that cannot be read does not keep the others from adding replicas, only from taking some away.
        """
        specs = hpa["spec"].get("metrics") or []
        best: Read | None = None
        failures: list[Failed] = []
        try:
            self._check_selector(key, hpa, target)
            for spec in specs:
                try:
                    read = await self._read(hpa, spec, target, draft.now)
                except Failed as failure:
                    self._event(hpa, failure.reason, str(failure))
                    failures.append(failure)
                    statuses.append({"type": ""})
                    continue
                statuses.append(read.status)
                if best is None or best.proposal.replicas == 0 or read.proposal.replicas > best.proposal.replicas:
                    best = read
        except Failed as failure:
            draft.tell("ScalingActive", False, failure.reason, failure.condition)
            self._event(hpa, "FailedComputeMetricsReplicas", str(failure))
            return None
        if best is not None and (not failures or best.proposal.replicas >= target.replicas):
            message = f"the HPA was able to successfully calculate a replica count from {best.name}"
            draft.tell("ScalingActive", True, "ValidMetricFound", message)
            return best.proposal.replicas, best.name
        if failures:
            first = failures[0]
            message = f"the HPA was unable to compute the replica count: {first}"
            draft.tell("ScalingActive", False, first.reason, message)
            count = f"{len(failures)} invalid out of {len(specs)}"
            why = f"invalid metrics ({count}), first error is: {first.prefix}{first}"
            self._event(hpa, "FailedComputeMetricsReplicas", why)
        return None

    def _check_selector(self, key: Key, hpa: Object, target: Scaled) -> None:
        """Raises Failed when there is none, or when pods are another autoscaler's, too."""
        if not target.selector_text:
            self._event(hpa, "SelectorRequired", "selector is required")
            why = "the HPA target's scale is missing a selector"
            raise Failed("InvalidSelector", "selector is required", condition=why)
        try:
            parse_label_selector(target.selector_text)
        except ValueError as error:
            why = f"couldn't convert selector into a corresponding internal selector object: {error}"
            self._event(hpa, "InvalidSelector", why)
            raise Failed("InvalidSelector", why) from error
        self._selectors[key] = target.selector
        rivals = [
            other
            for other, selector in self._selectors.items()
            if other.namespace == key.namespace and any(selector.matches(labels_of(pod)) for pod in target.pods)
        ]
        if len(rivals) > 1:
            named = " ".join(f"{{{other.name} {other.namespace}}}" for other in sorted(rivals)[:2])
            why = f"pods by selector {target.selector_text} are controlled by more than one HPA (e.g. [{named}])"
            self._event(hpa, "AmbiguousSelector", why)
            raise Failed("AmbiguousSelector", why)

    async def _read(self, hpa: Object, spec: Object, target: Scaled, now: float) -> Read:
        kind = spec["type"]
        readers = {
            "Resource": self._read_resource,
            "ContainerResource": self._read_container,
            "Pods": self._read_pods,
            "Object": self._read_object,
            "External": self._read_external,
        }
        reader = readers.get(kind)
        if reader is None:
            raise Failed("InvalidMetricSourceType", f'unknown metric source type "{kind}"')
        return await reader(hpa, spec, target, now)

    async def _read_resource(self, hpa: Object, spec: Object, target: Scaled, now: float) -> Read:
        source = spec["resource"]
        try:
            proposal, name = await self._of_resource(hpa, source, "", target, now)
        except MetricError as error:
            prefix = f"failed to get {source['name']} resource metric value: "
            raise Failed("FailedGetResourceMetric", str(error), prefix) from error
        current = _resource_value(source["name"], proposal)
        return Read(proposal, name, {"type": "Resource", "resource": {"name": source["name"], "current": current}})

    async def _read_container(self, hpa: Object, spec: Object, target: Scaled, now: float) -> Read:
        source = spec["containerResource"]
        try:
            proposal, name = await self._of_resource(hpa, source, source["container"], target, now)
        except MetricError as error:
            prefix = f"failed to get {source['container']} container metric value: "
            raise Failed("FailedGetContainerResourceMetric", str(error), prefix) from error
        current = _resource_value(source["name"], proposal)
        status = {"name": source["name"], "container": source["container"], "current": current}
        return Read(proposal, name, {"type": "ContainerResource", "containerResource": status})

    async def _of_resource(
        self, hpa: Object, source: Object, container: str, target: Scaled, now: float
    ) -> tuple[Proposal, str]:
        name, goal = source["name"], source["target"]
        tolerances, current = rules.tolerances_of(hpa), target.replicas
        average = goal.get("averageValue")
        try:
            metrics = await self._pod_metrics(name, hpa, target, container)
            if average is not None:
                wanted = parse_quantity(average).milli()
                proposal = rules.by_average(metrics, target.pods, current, wanted, name, tolerances, now)
                return proposal, f"{name} resource"
            percent = int(goal["averageUtilization"])
            proposal = rules.by_utilization(metrics, target.pods, current, percent, name, container, tolerances, now)
        except MetricError as error:
            what = "usage" if average is not None else "utilization"
            raise MetricError(f"failed to get {name} {what}: {error}") from error
        of = "container resource" if container else "resource"
        return proposal, f"{name} {of} utilization (percentage of request)"

    async def _pod_metrics(self, name: str, hpa: Object, target: Scaled, container: str) -> rules.PodMetrics:
        try:
            return await self._metrics.of_pods(name, namespace_of(hpa), str(target.selector), container)
        except MetricError as error:
            raise MetricError(f"unable to get metrics for resource {name}: {error}") from error

    async def _read_pods(self, hpa: Object, spec: Object, target: Scaled, now: float) -> Read:
        source = spec["pods"]
        metric, wanted = source["metric"], parse_quantity(source["target"]["averageValue"]).milli()
        try:
            try:
                metrics = await self._metrics.custom_of_pods(
                    metric["name"], namespace_of(hpa), str(target.selector), _selector(metric)
                )
            except MetricError as error:
                raise MetricError(f"unable to get metric {metric['name']}: {error}") from error
            tolerances = rules.tolerances_of(hpa)
            proposal = rules.by_average(metrics, target.pods, target.replicas, wanted, "", tolerances, now)
        except MetricError as error:
            raise Failed("FailedGetPodsMetric", str(error), "failed to get pods metric value: ") from error
        status = {"metric": metric, "current": {"averageValue": _milli(proposal.usage)}}
        return Read(proposal, f"pods metric {metric['name']}", {"type": "Pods", "pods": status})

    async def _read_object(self, hpa: Object, spec: Object, target: Scaled, now: float) -> Read:
        source = spec["object"]
        metric, goal, described = source["metric"], source["target"], source["describedObject"]
        namespace, name = namespace_of(hpa), metric["name"]
        shared = goal.get("type") == "AverageValue" and goal.get("averageValue") is not None
        wanted = parse_quantity(goal["averageValue"] if shared else goal["value"]).milli()
        tolerances = rules.tolerances_of(hpa)
        try:
            try:
                usage = await self._metrics.of_object(name, namespace, described, _selector(metric))
            except MetricError as error:
                where = f"{described['kind']} {namespace}/{described['name']}"
                raise MetricError(f"unable to get metric {name} on {where}: {error}") from error
            if shared:
                proposal = rules.by_share(usage, wanted, target.observed, tolerances)
            else:
                proposal = rules.by_total(usage, wanted, target.replicas, target.pods, tolerances)
        except MetricError as error:
            prefix = "failed to get object metric value: " + (f"failed to get {name} object metric: " if shared else "")
            raise Failed("FailedGetObjectMetric", str(error), prefix) from error
        current = {"averageValue" if shared else "value": _milli(proposal.usage)}
        status = {"metric": metric, "describedObject": described, "current": current}
        shown = _external_name(metric) if shared else f"{described['kind']} metric {name}"
        return Read(proposal, shown, {"type": "Object", "object": status})

    async def _read_external(self, hpa: Object, spec: Object, target: Scaled, now: float) -> Read:
        source = spec["external"]
        metric, goal = source["metric"], source["target"]
        namespace, name = namespace_of(hpa), metric["name"]
        shared = goal.get("averageValue") is not None
        wanted = parse_quantity(goal["averageValue"] if shared else goal["value"]).milli()
        tolerances = rules.tolerances_of(hpa)
        try:
            try:
                usage = sum(await self._metrics.external(name, namespace, _selector(metric)))
            except MetricError as error:
                where = f"{namespace}/{name}/{selector_text(metric['selector']) if metric.get('selector') else 'nil'}"
                raise MetricError(f"unable to get external metric {where}: {error}") from error
            if shared:
                proposal = rules.by_share(usage, wanted, target.observed, tolerances)
            else:
                proposal = rules.by_total(usage, wanted, target.replicas, target.pods, tolerances)
        except MetricError as error:
            what = f"{name} external metric" if shared else f"external metric {name}"
            prefix = f"failed to get {name} external metric value: failed to get {what}: "
            raise Failed("FailedGetExternalMetric", str(error), prefix) from error
        current = {"averageValue" if shared else "value": _milli(proposal.usage)}
        status = {"metric": metric, "current": current}
        return Read(proposal, _external_name(metric), {"type": "External", "external": status})


def _selector(metric: Object) -> str:
    return str(from_label_selector(metric.get("selector") or {}))


def _external_name(metric: Object) -> str:
    shown = selector_text(metric["selector"]) if metric.get("selector") else "nil"
    return f"external metric {metric['name']}({shown})"


def _milli(amount: int) -> str:
    return str(Quantity.of_milli(amount))


def _resource_value(resource: str, proposal: Proposal) -> Object:
    notation: Any = "BinarySI" if resource == "memory" else "DecimalSI"
    value: Object = {"averageValue": str(Quantity.of_milli(proposal.usage, notation))}
    if proposal.utilization is not None:
        value["averageUtilization"] = proposal.utilization
    return value


def _can_start_from_zero(hpa: Object) -> bool:
    """Whether a metric can be read while there is no pod."""
    return any(metric["type"] in ("Object", "External") for metric in hpa["spec"].get("metrics") or ())


def _tell_of_zero(draft: Draft, to_zero: bool) -> None:
    if to_zero:
        draft.tell("ScaledToZero", True, "ScaledToZero", "the HPA controller scaled the workload to zero")
    else:
        message = "the HPA controller did not scale the workload to zero"
        draft.tell("ScaledToZero", False, "NotScaledToZero", message)


HPA_CONTROLLER = Controller(
    "horizontal-pod-autoscaler-controller",
    HorizontalPodAutoscalers,
    account="horizontal-pod-autoscaler",
    component="horizontal-pod-autoscaler",
)
