"""What a delete request does to an object: remove it now, mark it and wait, or nothing more. Decided here, done in
verbs.py.

An object goes in two phases where it has finalizers or a grace period: it is marked (deletionTimestamp), and whoever
empties its finalizers or ends its grace removes it. Rules: k8s.io/apiserver registry/rest/delete.go and
generic/registry/store.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kone.apimachinery.errors import conflict
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object, deep_copy, metadata, replace_in
from kone.apimachinery.timestamps import format_time, parse_time
from kone.apiserver.context import DeleteOptions
from kone.registry.strategy import Strategy

ORPHAN: Final = "orphan"
FOREGROUND: Final = "foregroundDeletion"
RETURNED: Final = frozenset(
    (
        ("", "namespaces"),
        ("", "persistentvolumeclaims"),
        ("", "persistentvolumes"),
        ("", "pods"),
        ("", "podtemplates"),
        ("", "resourcequotas"),
        ("", "serviceaccounts"),
        ("", "services"),
        ("resource.k8s.io", "deviceclasses"),
        ("resource.k8s.io", "devicetaintrules"),
        ("resource.k8s.io", "resourceclaims"),
        ("resource.k8s.io", "resourceclaimtemplates"),
        ("resource.k8s.io", "resourceslices"),
        ("storage.k8s.io", "csidrivers"),
        ("storage.k8s.io", "csinodes"),
        ("storage.k8s.io", "storageclasses"),
        ("storage.k8s.io", "volumeattachments"),
        ("storage.k8s.io", "volumeattributesclasses"),
    )
)
"""(group, resource) of what a delete answers as it was; for the others it answers a Status."""
NAMESPACE: Final = GVK("", "v1", "Namespace")


@dataclass(frozen=True, slots=True)
class Deletion:
    """`obj` is the object as it is to be stored or, when `remove`, as it was last. With neither `changed` nor `remove`
    the deletion is under way already and there is nothing to do."""

    obj: Object
    changed: bool = False
    remove: bool = False


def check_preconditions(kind: GVK, obj: Object, options: DeleteOptions) -> None:
    """Raises 409 where the uid or the resourceVersion is not the one asked for."""
    meta = metadata(obj)
    group_kind = kind.group_kind
    if kind == NAMESPACE:
        _check_namespace(meta, options)
    if options.uid is not None and options.uid != meta.get("uid", ""):
        raise conflict(
            group_kind,
            meta["name"],
            f"the UID in the precondition ({options.uid}) does not match the UID in record ({meta.get('uid', '')}). "
            "The object might have been deleted and then recreated",
        )
    version = options.resource_version
    if version is not None and version != meta.get("resourceVersion", ""):
        raise conflict(
            group_kind,
            meta["name"],
            f"the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record "
            f"({meta.get('resourceVersion', '')}). The object might have been modified",
        )


def _check_namespace(meta: Object, options: DeleteOptions) -> None:
    """Upstream deletes namespaces by a handler of its own, with words of its own."""
    for label, given, field in (
        ("UID", options.uid, "uid"),
        ("ResourceVersion", options.resource_version, "resourceVersion"),
    ):
        found = meta.get(field, "")
        if given is not None and given != found:
            why = f"Precondition failed: {label} in precondition: {given}, {label} in object meta: {found}"
            raise conflict("namespaces", meta["name"], why)


def plan_deletion(strategy: Strategy, obj: Object, options: DeleteOptions, now: float) -> Deletion:
    """What deleting `obj` at `now` (Unix seconds) does. `obj` is not changed."""
    requested = 1 if options.grace_s is not None and options.grace_s < 0 else options.grace_s
    marked = (
        _shortened(obj, requested, now)
        if metadata(obj).get("deletionTimestamp")
        else _begun(strategy, obj, requested, now)
    )
    if marked is obj and (metadata(obj).get("deletionGracePeriodSeconds") or 0) > 0:
        return Deletion(obj)
    graceful = marked is not obj
    finalizers = finalizers_for(strategy, obj, options)
    if finalizers != (metadata(obj).get("finalizers") or []):
        marked = _with_finalizers(marked, finalizers)
    held = strategy.has_finalizers(marked)
    if graceful:
        waits = held or metadata(marked)["deletionGracePeriodSeconds"] > 0
        return Deletion(marked, changed=True, remove=not waits)
    if held:
        marked = _mark(strategy, marked, now)
        return Deletion(marked, changed=marked != obj)
    return Deletion(obj, remove=True)


def _begun(strategy: Strategy, obj: Object, requested: int | None, now: float) -> Object:
    """A graceful deletion begins; `obj` itself where its kind knows none."""
    grace_s = strategy.graceful_deletion_s(obj, requested)
    if grace_s is None:
        return obj
    return _bumped(_stamped(obj, now + grace_s, grace_s))


def _shortened(obj: Object, requested: int | None, now: float) -> Object:
    """A deletion under way may only be made shorter; `obj` itself where it is not."""
    meta = metadata(obj)
    grace_s = meta.get("deletionGracePeriodSeconds") or 0
    if grace_s == 0 or requested is None or requested >= grace_s:
        return obj
    moment = parse_time(meta["deletionTimestamp"]) - grace_s + requested
    if moment < int(now):
        # The shorter period is over already; who waits for the object to end still gets its second.
        moment, requested = now, 1 if requested else 0
    return _stamped(obj, moment, requested)


def _mark(strategy: Strategy, obj: Object, now: float) -> Object:
    """Finalizers hold an object of a kind that knows no grace: its period is 0 and its time is now."""
    stamp = metadata(obj).get("deletionTimestamp")
    if not stamp:
        marked: Object = deep_copy(_bumped(_stamped(obj, now, 0)))
        strategy.mark_deleting(marked)
        return marked
    return _stamped(obj, min(parse_time(stamp), now), metadata(obj).get("deletionGracePeriodSeconds") and 0)


def _stamped(obj: Object, moment: float, grace_s: int | None) -> Object:
    meta = {**obj["metadata"], "deletionTimestamp": format_time(moment)}
    if grace_s is not None:
        meta["deletionGracePeriodSeconds"] = grace_s
    return {**obj, "metadata": meta}


def _bumped(obj: Object) -> Object:
    generation = metadata(obj).get("generation") or 0
    return replace_in(obj, ("metadata", "generation"), generation + 1) if generation > 0 else obj


def _with_finalizers(obj: Object, finalizers: list[str]) -> Object:
    meta = {k: v for k, v in obj["metadata"].items() if k != "finalizers"}
    if finalizers:
        meta["finalizers"] = finalizers
    return {**obj, "metadata": meta}


def finalizers_for(strategy: Strategy, obj: Object, options: DeleteOptions) -> list[str]:
    """The object's finalizers with the garbage collector's two as the options, else the object, else its kind want
    them."""
    present: list[str] = metadata(obj).get("finalizers") or []
    orphan, foreground = _orphans(strategy, present, options), _foreground(strategy, present, options)
    wanted = [f for f in present if f not in (ORPHAN, FOREGROUND)]
    if orphan:
        wanted.append(ORPHAN)
    if foreground:
        wanted.append(FOREGROUND)
    return present if set(wanted) == set(present) else wanted


def _orphans(strategy: Strategy, present: list[str], options: DeleteOptions) -> bool:
    if strategy.default_propagation == "Unsupported":
        return False
    if options.orphan_dependents is not None:
        return options.orphan_dependents
    if options.propagation is not None:
        return options.propagation == "Orphan"
    for finalizer in present:
        if finalizer in (ORPHAN, FOREGROUND):
            return finalizer == ORPHAN
    return strategy.default_propagation == "Orphan"


def _foreground(strategy: Strategy, present: list[str], options: DeleteOptions) -> bool:
    if strategy.default_propagation == "Unsupported" or options.orphan_dependents is not None:
        return False
    if options.propagation is not None:
        return options.propagation == "Foreground"
    for finalizer in present:
        if finalizer in (ORPHAN, FOREGROUND):
            return finalizer == FOREGROUND
    return False


def ends_deletion(strategy: Strategy, obj: Object, old: Object) -> bool:
    """Whether an update of `old` to `obj` lets a deletion that was under way end."""
    meta = metadata(old)
    return (
        bool(meta.get("deletionTimestamp"))
        and not meta.get("deletionGracePeriodSeconds")
        and not strategy.has_finalizers(obj)
    )
