"""batch: Jobs and CronJobs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kone.apimachinery.cron import parse_schedule
from kone.apimachinery.errors import FieldError, invalid_value, not_supported, required
from kone.apimachinery.kinds import CRONJOBS, JOBS
from kone.apimachinery.names import is_dns1123_label, is_valid_label_value
from kone.apimachinery.objects import Object, dig, is_condition_true, is_deleting
from kone.apimachinery.selectors import from_label_selector
from kone.apimachinery.timestamps import parse_time
from kone.apimachinery.users import User
from kone.registry.core.pod_defaults import default_template
from kone.registry.core.pod_gates import drop_disabled
from kone.registry.internal import internal, sorted_map
from kone.registry.job_rules import job_spec
from kone.registry.job_updates import job_status, job_update
from kone.registry.printing import age, container_images, container_names, human_duration, label_selector_text
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, at_least_0, has_invalid_selector_value, label_selector
from kone.registry.strategy import StatusStrategy
from kone.registry.workloads import WorkloadStrategy, template_warnings

_NAME_LABELS = ("job-name", "batch.kubernetes.io/job-name")
_UID_LABELS = ("controller-uid", "batch.kubernetes.io/controller-uid")
_UID_LABEL = _UID_LABELS[1]
_NO_MATCH = "`selector` does not match template `labels`"
_MAX_INT32 = 2**31 - 1
_MANY, _MANY_AT_ONCE = 100_000, 10_000
_TOO_MANY_INDEXES = (
    "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes "
    "might not be able to track completedIndexes when a big number of indexes fail"
)

# -- jobs -------------------------------------------------------------------------------------------------------------


def _default_job_template(spec: Object) -> None:
    """What a Job's spec gets wherever it stands."""
    default_template(spec["template"])
    for rule in dig(spec, "podFailurePolicy", "rules", default=()):
        for pattern in rule.get("onPodConditions") or ():
            if not pattern.get("status"):
                pattern["status"] = "True"


class _Job(WorkloadStrategy):
    default_propagation = "Orphan"
    orphan_warning = (
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or "
        "set propagationPolicy=Orphan to suppress this warning"
    )

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        if spec.get("completions") is None and spec.get("parallelism") is None:
            spec["completions"] = 1
        per_index, policy = spec.get("backoffLimitPerIndex"), spec.get("podFailurePolicy")
        defaults: dict[str, Any] = {
            "parallelism": 1,
            "backoffLimit": 6 if per_index is None else _MAX_INT32,
            "completionMode": "NonIndexed",
            "suspend": False,
            "podReplacementPolicy": "TerminatingOrFailed" if policy is None else "Failed",
            "manualSelector": False,
        }
        for name, value in defaults.items():
            if spec.get(name) is None:
                spec[name] = value
        labels = dig(spec, "template", "metadata", "labels")
        if labels and not obj["metadata"].get("labels"):
            obj["metadata"]["labels"] = dict(labels)
        _default_job_template(spec)

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None and not obj["spec"]["manualSelector"]:
            _generate_selector(obj)
        super().prepare(obj, old, user=user)

    def drop_disabled(self, obj: Object) -> None:
        super().drop_disabled(obj)
        obj["spec"].pop("scheduling", None)  # WorkloadWithJob

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        if old is None:
            _generated_selector(errors, obj)
        job_spec(errors, "spec", spec)
        _selector(errors, spec, has_invalid_selector_value(dig(old, "spec", "selector")))
        if old is not None:
            job_update(errors, spec, old)
        _pod_names(errors, obj)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        yield from super().warnings(obj, old)
        spec = obj["spec"]
        many = (spec.get("completions") or 0) > _MANY and (spec.get("parallelism") or 0) > _MANY_AT_ONCE
        if spec.get("completionMode") == "Indexed" and many:
            yield _TOO_MANY_INDEXES

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {"status.successful": str(dig(obj, "status", "succeeded", default=0))}

    def unknown_field_label(self, label: str) -> str:
        return f'field label "{label}" not supported for Job'


def _generate_selector(obj: Object) -> None:
    """A Job selects its own pods by its UID, unless it says that it selects itself."""
    metadata, spec = obj["metadata"], obj["spec"]
    labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
    # A Job without labels has its template's, and those are about to change.
    follows = metadata.get("labels", {}) == labels
    for names, value in ((_NAME_LABELS, metadata.get("name", "")), (_UID_LABELS, metadata["uid"])):
        for name in names:
            labels.setdefault(name, value)
    if follows and not is_valid_label_value(metadata.get("name", "")):
        metadata["labels"] = dict(labels)  # a bad name is told of once, at the template
    selector = spec.get("selector")
    if selector is None:
        selector = spec["selector"] = {}
    selector.setdefault("matchLabels", {}).setdefault(_UID_LABEL, metadata["uid"])


def _generated_selector(errors: Errors, obj: Object) -> None:
    """Nobody else may have put other values into what _generate_selector makes."""
    metadata, spec = obj["metadata"], obj["spec"]
    if spec["manualSelector"] or spec.get("selector") is None:
        return
    labels = dig(spec, "template", "metadata", "labels", default={})
    uid, name = metadata["uid"], metadata.get("name", "")
    expected = {_UID_LABELS[0]: uid, _NAME_LABELS[0]: name, _UID_LABELS[1]: uid, _NAME_LABELS[1]: name}
    for key, value in expected.items():
        path = "spec.template.metadata.labels"
        if key not in labels:
            errors.append(required(f"{path}[{key}]", f"must be '{value}'"))
        elif labels[key] != value:
            errors.append(invalid_value(path, sorted_map(labels), f"must be '{value}'"))
    wrong: Errors = []
    label_selector(wrong, "spec.selector", spec["selector"])
    if wrong or from_label_selector(spec["selector"]).matches({_UID_LABEL: uid, _NAME_LABELS[1]: name}):
        return
    shown = internal("#metav1.LabelSelector", spec["selector"])
    errors.append(invalid_value("spec.selector", shown, "`selector` not auto-generated"))


def _selector(errors: Errors, spec: Object, any_value: bool) -> None:
    selector = spec.get("selector")
    wrong: Errors = []
    if selector is None:
        errors.append(required("spec.selector"))
    else:
        label_selector(wrong, "spec.selector", selector, any_value=any_value)
    errors += wrong
    labels = dig(spec, "template", "metadata", "labels")
    if not wrong and not from_label_selector(selector).matches(labels or {}):
        errors.append(invalid_value("spec.template.metadata.labels", sorted_map(labels), _NO_MATCH))


def _pod_names(errors: Errors, obj: Object) -> None:
    """Pods of an Indexed Job are named by their index, the longest of which must fit."""
    name, completions = obj["metadata"].get("name", ""), dig(obj, "spec", "completions")
    if dig(obj, "spec", "completionMode") == "Indexed" and completions:
        longest = f"{name}-{completions - 1}"
        if is_dns1123_label(longest):
            text = f"will not able to create pod with invalid DNS label: {longest}"
            errors.append(invalid_value("metadata.name", name, text))


def _job_state(obj: Object, now: float) -> str:
    for kind in ("Complete", "Failed"):
        if is_condition_true(obj, kind):
            return kind
    if is_deleting(obj):
        return "Terminating"
    waiting = (kind for kind in ("Suspended", "FailureTarget", "SuccessCriteriaMet") if is_condition_true(obj, kind))
    return next(waiting, "Running")


def _completions(obj: Object, now: float) -> str:
    succeeded, wanted = dig(obj, "status", "succeeded", default=0), dig(obj, "spec", "completions")
    if wanted is not None:
        return f"{succeeded}/{wanted}"
    parallelism = dig(obj, "spec", "parallelism", default=0)
    return f"{succeeded}/1 of {parallelism}" if parallelism > 1 else f"{succeeded}/1"


def _duration(obj: Object, now: float) -> str:
    started, finished = dig(obj, "status", "startTime"), dig(obj, "status", "completionTime")
    if started is None:
        return ""
    return human_duration((parse_time(finished) if finished else now) - parse_time(started))


def _wide(*path: str) -> tuple[Column, ...]:
    """The columns of -o wide; `path` leads to the JobSpec."""

    def pods(obj: Object) -> Any:
        return dig(obj, *path, "template", "spec", default={})

    return (
        Column("Containers", lambda obj, now: container_names(pods(obj)), priority=1),
        Column("Images", lambda obj, now: container_images(pods(obj)), priority=1),
        Column("Selector", lambda obj, now: label_selector_text(dig(obj, *path, "selector")), priority=1),
    )


# -- cron jobs --------------------------------------------------------------------------------------------------------

_CONCURRENCY = ("Allow", "Forbid", "Replace")
_MAX_NAME = 52  # the Job's name adds 11: a dash and the minutes since 1970
_CRON_TEMPLATE = "spec.jobTemplate.spec"


class _CronJob(WorkloadStrategy):
    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        if not spec.get("concurrencyPolicy"):
            spec["concurrencyPolicy"] = "Allow"
        for name, value in (("suspend", False), ("successfulJobsHistoryLimit", 3), ("failedJobsHistoryLimit", 1)):
            if spec.get(name) is None:
                spec[name] = value
        _default_job_template(spec["jobTemplate"]["spec"])

    def drop_disabled(self, obj: Object) -> None:
        spec = obj["spec"]["jobTemplate"]["spec"]
        drop_disabled(spec["template"]["spec"])
        spec.pop("scheduling", None)  # WorkloadWithJob

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        spec, name = obj["spec"], obj["metadata"].get("name", "")
        schedule, zone = spec.get("schedule", ""), spec.get("timeZone")
        if schedule:
            _schedule(errors, schedule, zone, "TZ" in dig(old, "spec", "schedule", default=""))
        else:
            later.append(required("spec.schedule"))
        at_least_0(errors, "spec.startingDeadlineSeconds", spec.get("startingDeadlineSeconds"))
        if zone is not None and (old is None or zone != dig(old, "spec", "timeZone")):
            _time_zone(errors, zone)
        if spec["concurrencyPolicy"] not in _CONCURRENCY:
            errors.append(not_supported("spec.concurrencyPolicy", spec["concurrencyPolicy"], _CONCURRENCY))
        template = spec["jobTemplate"]["spec"]
        job_spec(errors, _CRON_TEMPLATE, template)
        if template.get("selector") is not None:
            shown = internal("#metav1.LabelSelector", template["selector"])
            errors.append(invalid_value(f"{_CRON_TEMPLATE}.selector", shown, "`selector` will be auto-generated"))
        if template.get("manualSelector"):
            errors.append(not_supported(f"{_CRON_TEMPLATE}.manualSelector", True, ("nil", "false")))
        for field in ("successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
            at_least_0(errors, f"spec.{field}", spec.get(field))
        if old is None and len(name) > _MAX_NAME:
            errors.append(invalid_value("metadata.name", name, f"must be no more than {_MAX_NAME} characters"))
        return errors + later

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        yield from super().warnings(obj, old)
        if old is None or obj["metadata"].get("generation") != old["metadata"].get("generation"):
            template = dig(obj, "spec", "jobTemplate", "spec", "template")
            yield from template_warnings(template, f"{_CRON_TEMPLATE}.template")
        if old is not None and "TZ" in obj["spec"].get("schedule", ""):
            where = "https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/"
            yield f"cannot use TZ or CRON_TZ in spec.schedule, use timeZone instead, see {where} for more details"


def _schedule(errors: Errors, schedule: str, zone: str | None, may_name_zone: bool) -> None:
    path = "spec.schedule"
    try:
        parse_schedule(schedule)
    except ValueError as error:
        errors.append(invalid_value(path, schedule, str(error)))
    if "TZ" in schedule:
        if not may_name_zone:
            text = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            errors.append(invalid_value(path, schedule, text))
        elif zone is not None:
            text = "cannot use both timeZone field and TZ or CRON_TZ in schedule"
            errors.append(invalid_value(path, schedule, text))


_ZONE_PART = re.compile(r"[A-Za-z0-9._+-]+")


def _time_zone(errors: Errors, zone: str) -> None:
    path = "spec.timeZone"
    if not zone:
        errors.append(invalid_value(path, zone, "timeZone must be nil or non-empty string"))
        return
    for part in zone.split("/"):
        if part in (".", "..") or part.startswith("-") or not _ZONE_PART.fullmatch(part):
            errors.append(invalid_value(path, zone, f"unknown time zone {zone}"))
            return
    if zone.lower() == "local":
        text = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
        errors.append(invalid_value(path, zone, text))
        return
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        errors.append(invalid_value(path, zone, f"unknown time zone {zone}"))


def _suspend(obj: Object, now: float) -> str:
    """A text, though the column's type says otherwise."""
    return {None: "<unset>", True: "True", False: "False"}[dig(obj, "spec", "suspend")]


def _last_schedule(obj: Object, now: float) -> str:
    last = dig(obj, "status", "lastScheduleTime")
    return age(parse_time(last), now) if last else "<none>"


_job, _cron_job = _Job(), _CronJob()

RESOURCES: Sequence[Resource] = (
    Resource(
        CRONJOBS,
        "CronJob",
        _cron_job,
        short_names=("cj",),
        categories=("all",),
        status=StatusStrategy(_cron_job),
        columns=(
            NAME,
            Column("Schedule", lambda obj, now: dig(obj, "spec", "schedule", default="")),
            Column("Timezone", lambda obj, now: dig(obj, "spec", "timeZone", default="<none>")),
            Column("Suspend", _suspend, type="boolean"),
            Column("Active", lambda obj, now: len(dig(obj, "status", "active", default=())), type="integer"),
            Column("Last Schedule", _last_schedule),
            AGE,
            *_wide("spec", "jobTemplate", "spec"),
        ),
    ),
    Resource(
        JOBS,
        "Job",
        _job,
        categories=("all",),
        status=StatusStrategy(_job, rules=job_status),
        columns=(
            NAME,
            Column("Status", _job_state),
            Column("Completions", _completions),
            Column("Duration", _duration),
            AGE,
            *_wide("spec"),
        ),
    ),
)
