"""What may change of a Job: little of its spec, and of its status only what a Job can live through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kone.apimachinery.errors import OMITTED, duplicate, invalid_value, required
from kone.apimachinery.objects import Object, dig, is_condition_true
from kone.apimachinery.timestamps import parse_time
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE, immutable
from kone.registry.internal import internal
from kone.registry.job_rules import count_indexes, parse_interval
from kone.registry.rules import Errors, at_least_0

_FIXED = (
    ("completionMode", "s"),
    ("podFailurePolicy", "*#batch.PodFailurePolicy"),
    ("backoffLimitPerIndex", "*i"),
    ("managedBy", "*s"),
    ("successPolicy", "*#batch.SuccessPolicy"),
)
_SCHEDULING_DIRECTIVES = ("nodeSelector", "tolerations", "schedulingGates")
_COUNTS = ("active", "succeeded", "failed", "ready", "terminating")

# -- the spec ----------------------------------------------------------------------------------------------------------


def job_update(errors: Errors, spec: Object, old: Object) -> None:
    """ValidateJobSpecUpdate, but for the rules that hold for new Jobs too."""
    before = old["spec"]
    completions, was = spec.get("completions"), before.get("completions")
    if spec.get("completionMode") != "Indexed":
        errors.extend(immutable(completions, was, "spec.completions"))
    elif completions not in (was, None) and completions != spec.get("parallelism"):
        text = "can only be modified in tandem with spec.parallelism"
        errors.append(invalid_value("spec.completions", completions, text))
    if not same(spec.get("selector"), before.get("selector")):
        shown = internal("#metav1.LabelSelector", spec.get("selector"))
        errors.append(invalid_value("spec.selector", shown, IMMUTABLE))
    _template(errors, spec["template"], old)
    for name, kind in _FIXED:
        if not same(spec.get(name), before.get(name)):
            value = spec.get(name)
            errors.append(invalid_value(f"spec.{name}", None if value is None else internal(kind, value), IMMUTABLE))


def _template(errors: Errors, template: Object, old: Object) -> None:
    """It stays as it is, but while the Job is suspended and has no pods, where its pods go and what they get."""
    before: Object = old["spec"]["template"]
    if not _is_at_rest(old):
        if not same(template, before):
            errors.append(invalid_value("spec.template", internal("#core.PodTemplateSpec", template), IMMUTABLE))
        return
    spec, was = template["spec"], dict(before["spec"])
    for name in _SCHEDULING_DIRECTIVES:
        was[name] = spec.get(name)
    was["affinity"] = _with_node_affinity(was.get("affinity"), spec.get("affinity"))
    for name in ("containers", "initContainers"):
        own, new = was.get(name) or (), spec.get(name) or ()
        if own and len(own) == len(new):
            was[name] = [
                {**old_one, "resources": new_one.get("resources")}
                if old_one.get("name") == new_one.get("name")
                else old_one
                for old_one, new_one in zip(own, new, strict=True)
            ]
    if not same(spec, was):
        errors.append(invalid_value("spec.template.spec", internal("#core.PodSpec", spec), IMMUTABLE))


def _is_at_rest(job: Object) -> bool:
    """Suspended, and no pod of it runs."""
    status = job.get("status") or {}
    began = status.get("startTime") is not None and not is_condition_true(job, "Suspended")
    return bool(job["spec"].get("suspend")) and not began and not status.get("active")


def _with_node_affinity(before: Object | None, new: Object | None) -> Object | None:
    """The old affinity with the new one's part on nodes."""
    if new is None:
        rest = {name: value for name, value in (before or {}).items() if name != "nodeAffinity"}
        return rest or None
    return {**(before or {}), "nodeAffinity": new.get("nodeAffinity")}


# -- the status --------------------------------------------------------------------------------------------------------


class _Status:
    """A Job's status with its conditions at hand."""

    def __init__(self, job: Object) -> None:
        self.fields: Mapping[str, Any] = job.get("status") or {}
        self.complete, self.failed, self.failure_target, self.success, self.suspended = (
            is_condition_true(job, kind)
            for kind in ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet", "Suspended")
        )
        self.finished = self.complete or self.failed


def job_status(obj: Object, old: Object) -> Errors:
    """ValidateJobUpdateStatus: rules between fields hold where one of the fields changes (KEP-4368)."""
    errors: Errors = []
    spec, new, was = obj["spec"], _Status(obj), _Status(old)
    for name in _COUNTS:
        at_least_0(errors, f"status.{name}", new.fields.get(name))
    _uncounted(errors, new.fields.get("uncountedTerminatedPods") or {})
    _conditions(errors, new, was)
    _times(errors, new, was)
    _ends(errors, spec, new, was)
    _indexes(errors, spec, new, was)
    _pods(errors, new, was)
    _policies(errors, spec, new)
    _changes(errors, spec, obj, new, was)
    return errors


def _uncounted(errors: Errors, found: Mapping[str, Any]) -> None:
    seen: set[str] = set()
    for kind in ("succeeded", "failed"):
        for i, uid in enumerate(found.get(kind) or ()):
            path = f"status.uncountedTerminatedPods.{kind}[{i}]"
            if not uid:
                errors.append(invalid_value(path, uid, "must not be empty"))
            elif uid in seen:
                errors.append(duplicate(path, uid))
            seen.add(uid)


def _condition(errors: Errors, text: str) -> None:
    errors.append(invalid_value("status.conditions", OMITTED, text))


def _conditions(errors: Errors, new: _Status, was: _Status) -> None:
    if not new.complete:
        return
    if new.failed and (not was.complete or not was.failed):
        _condition(errors, "cannot set Complete=True and Failed=true conditions")
    if new.failure_target and (not was.complete or not was.failure_target):
        _condition(errors, "cannot set Complete=True and FailureTarget=true conditions")


def _times(errors: Errors, new: _Status, was: _Status) -> None:
    started, ended = new.fields.get("startTime"), new.fields.get("completionTime")
    end_changed = ended != was.fields.get("completionTime")
    if new.complete != was.complete or end_changed:
        if ended is not None and not new.complete:
            text = "cannot set completionTime when there is no Complete=True condition"
            errors.append(invalid_value("status.completionTime", ended, text))
        if ended is None and new.complete:
            errors.append(required("status.completionTime", "completionTime is required for Complete jobs"))
    changed = end_changed or started != was.fields.get("startTime")
    if changed and started is not None and ended is not None and parse_time(ended) < parse_time(started):
        errors.append(invalid_value("status.completionTime", ended, "must be equal to or after `startTime`"))


def _ends(errors: Errors, spec: Mapping[str, Any], new: _Status, was: _Status) -> None:
    fields, before, finishes = new.fields, was.fields, new.finished != was.finished
    failed_indexes = fields.get("failedIndexes") != before.get("failedIndexes")
    if new.failed and not new.failure_target and (not was.failed or failed_indexes):
        _condition(errors, "cannot set Failed=True condition without the FailureTarget=true condition")
    if new.complete and not new.success and (not was.complete or was.success):
        _condition(errors, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
    if not new.finished:
        return
    active = fields.get("active", 0)
    if active > 0 and (finishes or active != before.get("active", 0)):
        errors.append(invalid_value("status.active", active, "active>0 is invalid for finished job"))
    starts = finishes or fields.get("startTime") != before.get("startTime")
    asks_nothing = bool(spec.get("suspend")) and spec.get("completions") == 0
    if fields.get("startTime") is None and starts and not asks_nothing:
        errors.append(required("status.startTime", "startTime is required for finished job"))
    uncounted = fields.get("uncountedTerminatedPods")
    counted = finishes or not same(uncounted, before.get("uncountedTerminatedPods"))
    if counted and uncounted and (uncounted.get("failed") or uncounted.get("succeeded")):
        shown = internal("#batch.UncountedTerminatedPods", uncounted)
        errors.append(invalid_value("status.uncountedTerminatedPods", shown, "must be empty for finished job"))


def _indexes(errors: Errors, spec: Mapping[str, Any], new: _Status, was: _Status) -> None:
    done, failed = new.fields.get("completedIndexes", ""), new.fields.get("failedIndexes")
    done_changed = done != was.fields.get("completedIndexes", "")
    failed_changed = failed != was.fields.get("failedIndexes")
    completions, per_index = spec.get("completions"), spec.get("backoffLimitPerIndex")
    if done_changed and completions is not None:
        _well_formed(errors, "completedIndexes", done, completions)
    if failed_changed and completions is not None and per_index is not None and failed is not None:
        _well_formed(errors, "failedIndexes", failed, completions)
    if done_changed and done and spec.get("completionMode") != "Indexed":
        text = "cannot set non-empty completedIndexes when non-indexed completion mode"
        errors.append(invalid_value("status.completedIndexes", done, text))
    if failed is None:
        return
    if failed_changed and per_index is None:
        text = "cannot set non-null failedIndexes when backoffLimitPerIndex is null"
        errors.append(invalid_value("status.failedIndexes", failed, text))
    if (done_changed or failed_changed) and completions is not None:
        both = _first_in_both(done, failed, completions)
        if both is not None:
            text = f"failedIndexes and completedIndexes overlap at index: {both}"
            errors.append(invalid_value("status.failedIndexes", failed, text))


def _well_formed(errors: Errors, name: str, indexes: str, completions: int) -> None:
    try:
        count_indexes(indexes, completions)
    except ValueError as error:
        errors.append(invalid_value(f"status.{name}", indexes, f"error parsing {name}: {error}"))


def _intervals(indexes: str, completions: int) -> list[tuple[int, int]]:
    """Those that are well formed; the others are told of elsewhere."""
    found = []
    for part in indexes.split(",") if indexes else ():
        try:
            found.append(parse_interval(part, completions))
        except ValueError:
            continue
    return found


def _first_in_both(done: str, failed: str, completions: int) -> int | None:
    one, other = _intervals(done, completions), _intervals(failed, completions)
    while one and other:
        low, high = max(one[0][0], other[0][0]), min(one[0][1], other[0][1])
        if low <= high:
            return low
        (one if one[0][0] <= other[0][0] else other).pop(0)
    return None


def _pods(errors: Errors, new: _Status, was: _Status) -> None:
    fields, before = new.fields, was.fields
    terminating, ready, active = fields.get("terminating"), fields.get("ready"), fields.get("active", 0)
    changed = new.finished != was.finished or terminating != before.get("terminating")
    if changed and new.finished and (terminating or 0) > 0:
        errors.append(invalid_value("status.terminating", terminating, "terminating>0 is invalid for finished job"))
    changed = ready != before.get("ready") or active != before.get("active", 0)
    if changed and ready is not None and ready > active:
        errors.append(invalid_value("status.ready", ready, "cannot set more ready pods than active"))


def _policies(errors: Errors, spec: Mapping[str, Any], new: _Status) -> None:
    if new.success and new.failed:
        _condition(errors, "cannot set SuccessCriteriaMet=True and Failed=true conditions")
    if new.success and new.failure_target:
        _condition(errors, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
    if spec.get("successPolicy") is not None and new.complete and not new.success:
        _condition(errors, "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")


def _changes(errors: Errors, spec: Mapping[str, Any], obj: Object, new: _Status, was: _Status) -> None:
    """What does not come back, once it is so."""
    for kind, then, now in (
        ("Failed", was.failed, new.failed),
        ("Complete", was.complete, new.complete),
        ("FailureTarget", was.failure_target, new.failure_target),
    ):
        if then and not now:
            _condition(errors, f"cannot disable the terminal {kind}=True condition")
    fields, before = new.fields, was.fields
    _only_rises(errors, "failed", fields, before)
    is_elastic = spec.get("completionMode") == "Indexed" and spec.get("completions") == spec.get("parallelism")
    if not is_elastic:
        _only_rises(errors, "succeeded", fields, before)
    ended, end = before.get("completionTime"), fields.get("completionTime")
    if ended is not None and end not in (None, ended):
        errors.append(invalid_value("status.completionTime", end, IMMUTABLE))
    began, start = before.get("startTime"), fields.get("startTime")
    resumes = was.suspended and _is_false(obj, "Suspended")
    if began is not None and start != began and not spec.get("suspend") and not resumes:
        text = "field is immutable for unsuspended job once set"
        errors.append(invalid_value("status.startTime", start, text))
    if was.success and not new.success:
        _condition(errors, "cannot disable the SuccessCriteriaMet=True condition")
    if was.complete and not was.success and new.success:
        text = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions"
        _condition(errors, text)


def _only_rises(errors: Errors, name: str, fields: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    count = fields.get(name, 0)
    if count < before.get(name, 0):
        errors.append(invalid_value(f"status.{name}", count, f"cannot decrease the {name} counter"))


def _is_false(job: Object, kind: str) -> bool:
    conditions = dig(job, "status", "conditions", default=()) or ()
    return any(each.get("type") == kind and each.get("status") == "False" for each in conditions)
