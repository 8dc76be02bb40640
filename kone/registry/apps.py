"""apps: deployments, replica sets, daemon sets and the revisions of their templates; stateful sets have a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.kinds import CONTROLLERREVISIONS, DAEMONSETS, DEPLOYMENTS, REPLICASETS, parse_api_version
from kone.apimachinery.objects import Object, controller_of, dig
from kone.apimachinery.users import User
from kone.registry import workloads
from kone.registry.conditions import not_more_than_100_percent, positive_int_or_percent
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.printing import selector_text
from kone.registry.resource import AGE, NAME, Column, Resource, ScaleSpec
from kone.registry.rules import Errors, at_least_0
from kone.registry.statefulset import STATEFULSETS
from kone.registry.strategy import StatusStrategy, Strategy
from kone.registry.workloads import number

TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"


class _Deployment(workloads.WorkloadStrategy):
    def default(self, obj: Object) -> None:
        super().default(obj)
        spec = obj["spec"]
        strategy = spec.setdefault("strategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            rolling = strategy["rollingUpdate"] = strategy.get("rollingUpdate") or {}
            _fill(rolling, maxUnavailable="25%", maxSurge="25%")
        _fill(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)

    def is_changed(self, obj: Object, old: Object) -> bool:
        # Annotations count too: they are copied to the replica sets.
        annotations, before = obj["metadata"].get("annotations"), old["metadata"].get("annotations")
        return super().is_changed(obj, old) or (annotations or {}) != (before or {})

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        at_least_0(errors, "spec.replicas", spec["replicas"])
        _replicated(errors, spec)
        _deployment_strategy(errors, spec["strategy"])
        at_least_0(errors, "spec.minReadySeconds", spec.get("minReadySeconds"))
        at_least_0(errors, "spec.revisionHistoryLimit", spec["revisionHistoryLimit"])
        deadline_s = spec["progressDeadlineSeconds"]
        at_least_0(errors, "spec.progressDeadlineSeconds", deadline_s)
        if deadline_s <= spec.get("minReadySeconds", 0):
            errors.append(
                invalid_value("spec.progressDeadlineSeconds", deadline_s, "must be greater than minReadySeconds")
            )
        if old is not None:
            _same_selector(errors, spec, old["spec"])
        return errors


def _fill(found: Object, **defaults: Any) -> None:
    for field, value in defaults.items():
        if found.get(field) is None:
            found[field] = value


def _replicated(errors: Errors, spec: Mapping[str, Any]) -> None:
    """The selector and the template of a deployment or replica set; upstream words both alike."""
    selector, template = spec.get("selector"), spec["template"]
    if not workloads.selector(errors, selector, "deployment"):
        value = workloads.selector_value(selector)
        errors.append(invalid_value("spec.selector", value, "invalid label selector"))
        return
    workloads.selected(errors, template, selector)
    workloads.template_rules(errors, template)
    workloads.always_running(errors, template, "ReplicaSet")


def _same_selector(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    if not same(spec.get("selector"), before.get("selector")):
        errors.append(invalid_value("spec.selector", workloads.selector_value(spec.get("selector")), IMMUTABLE))


def _deployment_strategy(errors: Errors, strategy: Mapping[str, Any]) -> None:
    path, kind = "spec.strategy", strategy["type"]
    if kind == "Recreate":
        if strategy.get("rollingUpdate") is not None:
            text = "may not be specified when strategy `type` is 'Recreate'"
            errors.append(forbidden_field(f"{path}.rollingUpdate", text))
    elif kind == "RollingUpdate":
        rolling = strategy["rollingUpdate"]
        unavailable, surge = rolling["maxUnavailable"], rolling["maxSurge"]
        positive_int_or_percent(errors, f"{path}.rollingUpdate.maxUnavailable", unavailable)
        positive_int_or_percent(errors, f"{path}.rollingUpdate.maxSurge", surge)
        if workloads.amount(unavailable) == 0 and workloads.amount(surge) == 0:
            text = "may not be 0 when `maxSurge` is 0"
            errors.append(invalid_value(f"{path}.rollingUpdate.maxUnavailable", unavailable, text))
        not_more_than_100_percent(errors, f"{path}.rollingUpdate.maxUnavailable", unavailable)
    else:
        shown = internal("#apps.DeploymentStrategy", strategy)
        errors.append(not_supported(path, shown, ("Recreate", "RollingUpdate")))


def _deployment_status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    status = obj.get("status") or {}
    workloads.counts(
        errors,
        status,
        *("observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas"),
        *("unavailableReplicas", "terminatingReplicas", "collisionCount"),
    )
    workloads.at_most_replicas(errors, status, "updatedReplicas", "readyReplicas", "availableReplicas")
    workloads.collisions(errors, status, old.get("status") or {})
    return errors


class _ReplicaSet(workloads.WorkloadStrategy):
    zeros = ("replicas",)

    def default(self, obj: Object) -> None:
        super().default(obj)
        _fill(obj["spec"], replicas=1)

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        at_least_0(errors, "spec.replicas", spec["replicas"])
        at_least_0(errors, "spec.minReadySeconds", spec.get("minReadySeconds"))
        _replicated(errors, spec)
        if old is not None:
            _same_selector(errors, spec, old["spec"])
        return errors


def _replicaset_status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    status = obj.get("status") or {}
    workloads.counts(
        errors,
        status,
        *("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"),
        *("observedGeneration", "terminatingReplicas"),
    )
    workloads.at_most_replicas(errors, status, "fullyLabeledReplicas", "readyReplicas", "availableReplicas")
    return errors


class _DaemonSet(workloads.WorkloadStrategy):
    names_pods = False
    zeros = ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady")

    def default(self, obj: Object) -> None:
        super().default(obj)
        spec = obj["spec"]
        strategy = spec.setdefault("updateStrategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            rolling = strategy["rollingUpdate"] = strategy.get("rollingUpdate") or {}
            _fill(rolling, maxUnavailable=1, maxSurge=0)
        _fill(spec, revisionHistoryLimit=10)

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> Sequence[str] | None:
        # The generation of the template alone lives in an annotation since apps/v1 dropped its field.
        annotations = obj["metadata"]["annotations"] = dict(obj["metadata"].get("annotations") or {})
        if old is None:
            annotations[TEMPLATE_GENERATION] = str(max(_template_generation(obj), 1))
        super().prepare(obj, old, user=user)
        if old is not None:
            changed = not same(obj["spec"]["template"], old["spec"]["template"])
            annotations[TEMPLATE_GENERATION] = str(_template_generation(old) + changed)
        return None

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        if old is not None:
            _same_selector(errors, spec, old["spec"])
        _daemons(errors, spec)
        at_least_0(errors, "spec.minReadySeconds", spec.get("minReadySeconds"))
        _daemon_strategy(errors, spec["updateStrategy"])
        at_least_0(errors, "spec.revisionHistoryLimit", spec["revisionHistoryLimit"])
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is None or not same(obj["spec"]["template"], old["spec"]["template"]):
            yield from workloads.template_warnings(obj["spec"]["template"])


class _DaemonSetStatus(StatusStrategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        assert old is not None
        annotations = dict(obj["metadata"].get("annotations") or {})
        obj["metadata"]["annotations"] = {**annotations, TEMPLATE_GENERATION: str(_template_generation(old))}


def _template_generation(obj: Object) -> int:
    text = (obj["metadata"].get("annotations") or {}).get(TEMPLATE_GENERATION, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _daemons(errors: Errors, spec: Mapping[str, Any]) -> None:
    """The selector may be left out, and then selects nothing, which is told at the template."""
    selector, template = spec.get("selector"), spec["template"]
    found: Errors = []
    if selector is None or workloads.selector(found, selector, "daemonset"):
        workloads.selected(errors, template, selector)
    errors += found
    workloads.template_rules(errors, template)
    workloads.always_running(errors, template, "DaemonSet")


def _daemon_strategy(errors: Errors, strategy: Mapping[str, Any]) -> None:
    path, kind = "spec.updateStrategy", strategy["type"]
    if kind not in ("RollingUpdate", "OnDelete"):
        shown = internal("#apps.DaemonSetUpdateStrategy", strategy)
        errors.append(not_supported(path, shown, ("RollingUpdate", "OnDelete")))
    if kind != "RollingUpdate":
        return
    path += ".rollingUpdate"
    unavailable, surge = strategy["rollingUpdate"]["maxUnavailable"], strategy["rollingUpdate"]["maxSurge"]
    positive_int_or_percent(errors, f"{path}.maxUnavailable", unavailable)
    positive_int_or_percent(errors, f"{path}.maxSurge", surge)
    not_more_than_100_percent(errors, f"{path}.maxUnavailable", unavailable)
    not_more_than_100_percent(errors, f"{path}.maxSurge", surge)
    has_unavailable, has_surge = workloads.amount(unavailable) != 0, workloads.amount(surge) != 0
    if has_unavailable and has_surge:
        errors.append(invalid_value(f"{path}.maxSurge", surge, "may not be set when maxUnavailable is non-zero"))
    elif not has_unavailable and not has_surge:
        errors.append(required(f"{path}.maxUnavailable", "cannot be 0 when maxSurge is 0"))


def _daemonset_status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    status = obj.get("status") or {}
    workloads.counts(
        errors,
        status,
        *("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"),
        *("observedGeneration", "updatedNumberScheduled", "numberAvailable", "numberUnavailable", "collisionCount"),
    )
    workloads.collisions(errors, status, old.get("status") or {})
    return errors


class _ControllerRevision(Strategy):
    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        at_least_0(errors, "revision", obj.get("revision", 0))
        data = obj.get("data")
        if old is not None:
            if data != old.get("data"):
                errors.append(invalid_value("data", data, IMMUTABLE))
        elif data is None:
            errors.append(required("data", "data is mandatory"))
        elif not isinstance(data, dict):
            errors.append(required("data", "data must be a valid JSON object"))
        return errors


def _controller_cell(obj: Object, now: float) -> str:
    owner = controller_of(obj)
    if owner is None:
        return "<none>"
    group = parse_api_version(owner.get("apiVersion", ""))[0]
    kind = f"{owner['kind']}.{group}" if group else owner["kind"]
    return f"{kind.lower()}/{owner['name']}"


def _of_desired(obj: Object, now: float) -> str:
    return f"{dig(obj, 'status', 'readyReplicas', default=0) or 0}/{dig(obj, 'spec', 'replicas', default=0)}"


_deployment, _replicaset, _daemonset = _Deployment(), _ReplicaSet(), _DaemonSet()

RESOURCES: Sequence[Resource] = (
    Resource(
        gvr=CONTROLLERREVISIONS,
        kind="ControllerRevision",
        strategy=_ControllerRevision(),
        columns=(
            NAME,
            Column("Controller", _controller_cell),
            Column("Revision", lambda obj, now: obj.get("revision", 0)),
            AGE,
        ),
    ),
    Resource(
        gvr=DAEMONSETS,
        kind="DaemonSet",
        short_names=("ds",),
        categories=("all",),
        strategy=_daemonset,
        status=_DaemonSetStatus(_daemonset, rules=_daemonset_status),
        columns=(
            NAME,
            Column("Desired", number("status", "desiredNumberScheduled"), type="integer"),
            Column("Current", number("status", "currentNumberScheduled"), type="integer"),
            Column("Ready", number("status", "numberReady"), type="integer"),
            Column("Up-to-date", number("status", "updatedNumberScheduled"), type="integer"),
            Column("Available", number("status", "numberAvailable"), type="integer"),
            Column(
                "Node Selector",
                lambda obj, now: selector_text(dig(obj, "spec", "template", "spec", "nodeSelector")),
            ),
            AGE,
            workloads.CONTAINERS,
            workloads.IMAGES,
            workloads.SELECTOR,
        ),
    ),
    Resource(
        gvr=DEPLOYMENTS,
        kind="Deployment",
        short_names=("deploy",),
        categories=("all",),
        strategy=_deployment,
        status=StatusStrategy(_deployment, kept_metadata=("labels",), rules=_deployment_status),
        scale=ScaleSpec(),
        columns=(
            NAME,
            Column("Ready", _of_desired),
            Column("Up-to-date", number("status", "updatedReplicas")),
            Column("Available", number("status", "availableReplicas")),
            AGE,
            workloads.CONTAINERS,
            workloads.IMAGES,
            workloads.SELECTOR,
        ),
    ),
    Resource(
        gvr=REPLICASETS,
        kind="ReplicaSet",
        short_names=("rs",),
        categories=("all",),
        strategy=_replicaset,
        status=StatusStrategy(_replicaset, rules=_replicaset_status),
        scale=ScaleSpec(),
        columns=(
            NAME,
            Column("Desired", number("spec", "replicas"), type="integer"),
            Column("Current", number("status", "replicas"), type="integer"),
            Column("Ready", number("status", "readyReplicas"), type="integer"),
            AGE,
            workloads.CONTAINERS,
            workloads.IMAGES,
            workloads.SELECTOR,
        ),
    ),
    STATEFULSETS,
)
