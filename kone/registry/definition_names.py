"""Which names of a CustomResourceDefinition are accepted, and what its conditions say of it. Nothing here acts.

A name that another definition of the group has got already is refused; the definition keeps what it had. Reasons and
texts: k8s.io/apiextensions-apiserver, pkg/controller/status and establish.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, annotations_of, dig, name_of

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
APPROVAL = "api-approved.kubernetes.io"
_PROTECTED = ("k8s.io", "kubernetes.io")


@dataclass(frozen=True, slots=True)
class Taken:
    """The names that other definitions of a group have."""

    resources: frozenset[str]
    kinds: frozenset[str]


def taken_by(others: Iterable[Object]) -> Taken:
    resources: set[str] = set()
    kinds: set[str] = set()
    for other in others:
        names = dig(other, "status", "acceptedNames", default={})
        resources |= {names.get("plural", ""), names.get("singular", ""), *(names.get("shortNames") or ())}
        kinds |= {names.get("kind", ""), names.get("listKind", "")}
    return Taken(frozenset(resources - {""}), frozenset(kinds - {""}))


def accepted_status(definition: Object, others: Iterable[Object], now: str) -> Object:
    """The status of a definition among the others of its group; `now` is the time of what changes."""
    asked = dig(definition, "spec", "names", default={})
    had = dig(definition, "status", "acceptedNames", default={})
    taken = taken_by(other for other in others if name_of(other) != name_of(definition))
    names = dict(had)
    problem: tuple[str, str] | None = None
    for field, used, reason in (
        ("plural", taken.resources, "PluralConflict"),
        ("singular", taken.resources, "SingularConflict"),
        ("shortNames", taken.resources, "ShortNamesConflict"),
        ("kind", taken.kinds, "KindConflict"),
        ("listKind", taken.kinds, "ListKindConflict"),
    ):
        wanted = asked.get(field)
        texts = wanted or [] if field == "shortNames" else [wanted] if wanted else []
        own = had.get(field) or [] if field == "shortNames" else [had.get(field)]
        clashes = [f"{go_quote(text)} is already in use" for text in texts if text not in own and text in used]
        if clashes:
            problem = reason, clashes[0] if len(clashes) == 1 else f"[{', '.join(clashes)}]"
        elif wanted:
            names[field] = wanted
        else:
            names.pop(field, None)
    if categories := asked.get("categories"):
        names["categories"] = categories
    else:
        names.pop("categories", None)
    status: Object = dict(definition.get("status") or {})
    status["acceptedNames"] = names
    conditions = list(status.get("conditions") or ())
    if problem is None:
        conditions = with_condition(conditions, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now)
        if not is_true(conditions, "Established"):
            conditions = with_condition(
                conditions,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
                now,
            )
    else:
        conditions = with_condition(conditions, "NamesAccepted", "False", *problem, now)
        if not any(condition["type"] == "Established" for condition in conditions):
            conditions = with_condition(
                conditions, "Established", "False", "NotAccepted", "not all names are accepted", now
            )
    status["conditions"] = _with_approval(definition, conditions, now)
    return status


def _with_approval(definition: Object, conditions: list[Object], now: str) -> list[Object]:
    """Definitions in the community's own groups say who allowed them (KEP-1111)."""
    group = dig(definition, "spec", "group", default="")
    if not any(group == owned or group.endswith(f".{owned}") for owned in _PROTECTED):
        return conditions
    given = annotations_of(definition).get(APPROVAL, "")
    kind = "KubernetesAPIApprovalPolicyConformant"
    if not given:
        text = f"protected groups must have approval annotation {go_quote(APPROVAL)}, see https://github.com/kubernetes/enhancements/pull/1111"
        return with_condition(conditions, kind, "False", "MissingAnnotation", text, now)
    if given.startswith("unapproved"):
        return with_condition(
            conditions, kind, "False", "UnapprovedAnnotation", f"not approved: {go_quote(given)}", now
        )
    return with_condition(conditions, kind, "True", "ApprovedAnnotation", f"approved in {given}", now)


def terminating(conditions: Iterable[Object], reason: str, message: str, now: str) -> list[Object]:
    """The conditions of a definition whose objects are being deleted."""
    return with_condition(list(conditions), "Terminating", "True", reason, message, now)


def with_condition(
    conditions: list[Object], kind: str, status: str, reason: str, message: str, now: str
) -> list[Object]:
    """The conditions with that one as it is now; its time is when its status changed last."""
    made = {"type": kind, "status": status, "lastTransitionTime": now, "reason": reason, "message": message}
    found = []
    for condition in conditions:
        if condition["type"] != kind:
            found.append(condition)
            continue
        if condition["status"] == status:
            made["lastTransitionTime"] = condition.get("lastTransitionTime", now)
        found.append(made)
        made = {}
    return [*found, made] if made else found


def is_true(conditions: Iterable[Object], kind: str) -> bool:
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)
