"""Who owns which fields of an object: metadata.managedFields, kept on every write, and server-side apply.

An Update owns what it changed; an Apply owns all that it said, and loses, with the fields themselves, what it no
longer says and nobody else owns. Two appliers that want different values conflict, unless one forces. Entries are
told apart by manager, operation, subresource and, for updates, version. Rules: k8s.io/apimachinery,
util/managedfields; sigs.k8s.io/structured-merge-diff, merge.

An entry names fields of the version that its owner spoke. To judge one of another version, the object is needed in that
version, and to have it may take a webhook: so `updated` and `applied` are generators, which yield what they want
converted (`Wanted`) and are sent it (`InVersion`, None where there is no such version). Mostly they yield nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from kone.apimachinery import field_sets, typed
from kone.apimachinery.errors import StatusError, go_quote
from kone.apimachinery.field_sets import FieldSet
from kone.apimachinery.objects import Object, metadata, replace_in
from kone.apimachinery.structure import Structure

MAX_UPDATE_MANAGERS: Final = 10
"""Older entries of updates are put together beyond this."""
ANCIENT: Final = "ancient-changes"
BEFORE_FIRST_APPLY: Final = "before-first-apply"
UNKNOWN: Final = "unknown"
KUBECTL: Final = "kubectl"
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
MAX_ANNOTATIONS_BYTES: Final = 256 * 1024
NEVER_OWNED: Final = (
    *(("f:apiVersion",), ("f:kind",)),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        )
    ),
)

Filter = Callable[[FieldSet], FieldSet]
"""Leaves out of a set what a write of this resource cannot change anyway (its strategy resets it)."""


@dataclass(frozen=True, slots=True)
class Manager:
    """Who writes, and by what."""

    name: str
    operation: Literal["Apply", "Update"]
    api_version: str
    subresource: str = ""

    def owns(self, entry: Object) -> bool:
        """Whether an entry is this manager's."""
        return bool(
            entry.get("manager", "") == self.name
            and entry["operation"] == self.operation
            and entry.get("subresource", "") == self.subresource
            and (self.operation == "Apply" or entry.get("apiVersion") == self.api_version)
        )

    def entry(self, fields: FieldSet, time: str) -> Object:
        made: Object = {"manager": self.name, "operation": self.operation, "apiVersion": self.api_version}
        if time:
            made["time"] = time
        made["fieldsType"] = "FieldsV1"
        made["fieldsV1"] = field_sets.ordered(fields)
        if self.subresource:
            made["subresource"] = self.subresource
        return made


@dataclass(frozen=True, slots=True)
class Rules:
    """What is known of the kind that is written."""

    structure: Structure
    zero: Object
    """What a new object is compared with."""
    filter: Filter


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that is wanted in another version."""

    obj: Object
    api_version: str


@dataclass(frozen=True, slots=True)
class InVersion:
    """The object in that version, and the rules of its kind there."""

    obj: Object
    rules: Rules
    by_name_alone: bool = False
    """Whether the two versions differ by name alone, so that each must know the other's fields."""


T = TypeVar("T")
Steps = Generator[Wanted, InVersion | None, T]
Changes = Mapping[str, tuple[FieldSet, FieldSet] | None]
"""By apiVersion, what a write touched and what it removed; None where there is no such version any more."""


def owned(entry: Object) -> FieldSet:
    """The fields of an entry."""
    return entry.get("fieldsV1") or {}


def entries_of(obj: Object) -> list[Object]:
    found: list[Object] = metadata(obj).get("managedFields") or []
    return found


def is_reset(given: Any) -> bool:
    """A client that sends one empty entry wants them all gone."""
    return bool(given == [{}])


def readable(entries: Any) -> bool:
    """Whether a client's entries make sense; those that do not are as if they had not been sent."""
    return all(
        entry.get("operation") in ("Apply", "Update")
        and entry.get("fieldsType") == "FieldsV1"
        and bool(entry.get("apiVersion"))
        and field_sets.is_valid(entry.get("fieldsV1") or {})
        for entry in entries
    )


def updated(
    rules: Rules, live: Object | None, new: Object, given: Any, manager: Manager, time: str
) -> Steps[list[Object]]:
    """managedFields after an update of `live` (None: a creation) to `new`. `given` is what the client sent as them."""
    present = entries_of(live) if live is not None else []
    if is_reset(given):
        present = []
    elif given and not manager.subresource and readable(given):
        present = given
    if not present and live is not None:
        return []  # whose fields nobody knew so far stays so, until the first apply
    touched, removed = typed.compare(rules.structure, rules.zero if live is None else live, new)
    touched, removed = _tracked(rules, touched), rules.filter(removed)
    if not touched and not removed:
        return present
    changes = yield from _changes(live, new, manager.api_version, (touched, removed), present)
    return _capped(_settled(present, changes, manager, time))


def _changes(
    live: Object | None,
    new: Object,
    own: str,
    told: tuple[FieldSet, FieldSet],
    entries: Iterable[Object],
    config: Object | None = None,
) -> Steps[Changes]:
    """`told` is what changed from `live` (None: from nothing) to `new`, in the version `own`.

    Raises StatusError 500 where the versions of others do not know a field of the `config` that was applied.
    """
    found: dict[str, tuple[FieldSet, FieldSet] | None] = {own: told}
    for version in sorted({entry["apiVersion"] for entry in entries} - {own}):
        after = yield Wanted(new, version)
        before = after if live is None or after is None else (yield Wanted(live, version))
        if after is None or before is None:
            found[version] = None
            continue
        rules = after.rules
        if (
            config is not None
            and after.by_name_alone
            and (found_problems := [*typed.problems(rules.structure, config)])
        ):
            raise StatusError(500, "", f"failed to convert new object: {_listed(found_problems)}")
        touched, removed = typed.compare(rules.structure, rules.zero if live is None else before.obj, after.obj)
        found[version] = rules.filter(touched), rules.filter(removed)
    return found


def _without(entry: Object, changes: Changes) -> Object | None:
    """An entry without the fields that others have changed; None where nothing is left, or its version is gone."""
    change = changes[entry["apiVersion"]]
    if change is None:
        return None
    fields = field_sets.difference(owned(entry), field_sets.union(*change))
    if fields is owned(entry):
        return entry
    return {**entry, "fieldsV1": fields} if fields else None


def _tracked(rules: Rules, fields: FieldSet) -> FieldSet:
    return stripped(rules.filter(fields))


def stripped(fields: FieldSet) -> FieldSet:
    """The set without what nobody ever owns."""
    for path in NEVER_OWNED:
        if path[0] in fields:
            fields = field_sets.without(fields, path)
    about = fields.get("f:metadata")
    if about is not None and field_sets.is_member(about):
        fields = {name: below for name, below in fields.items() if name != "f:metadata"}
        if rest := {name: below for name, below in about.items() if name != field_sets.SELF}:
            fields["f:metadata"] = rest
    return fields


def _settled(entries: Iterable[Object], changes: Changes, manager: Manager, time: str) -> list[Object]:
    """Everybody loses what was touched or removed; the manager gets what was touched."""
    out: list[Object] = []
    touched, removed = changes[manager.api_version] or ({}, {})
    mine: FieldSet = touched
    for entry in entries:
        if touched and manager.owns(entry):
            mine = field_sets.union(field_sets.difference(owned(entry), field_sets.union(touched, removed)), touched)
        elif (left := _without(entry, changes)) is not None:
            out.append(left)
    if mine:
        out.append(manager.entry(mine, time))
    return ordered(out)


def ordered(entries: list[Object]) -> list[Object]:
    """In upstream's order: appliers first, then by time."""
    entries.sort(
        key=lambda e: (
            e["operation"],
            e.get("time") or "",
            e.get("manager", ""),
            e.get("apiVersion", ""),
            e.get("subresource", ""),
        )
    )
    return entries


def _capped(entries: list[Object]) -> list[Object]:
    """At most ten updaters: the oldest become one entry a version."""
    updaters = [entry for entry in entries if entry["operation"] == "Update"]
    count = len(updaters)
    if count <= MAX_UPDATE_MANAGERS:
        return entries
    kept = [entry for entry in entries if entry["operation"] != "Update"]
    first: dict[str, int] = {}
    for i, entry in enumerate(updaters):
        version = entry["apiVersion"]
        if count <= MAX_UPDATE_MANAGERS:
            break
        if version not in first:
            first[version] = i
            continue
        oldest = updaters[first[version]]
        fields = field_sets.union(owned(oldest), owned(entry))
        updaters[first[version]] = Manager(ANCIENT, "Update", version).entry(fields, entry.get("time") or "")
        updaters[i] = {}
        count -= 1
    return ordered(kept + [entry for entry in updaters if entry])


def same_but_times(left: Sequence[Object], right: Sequence[Object]) -> bool:
    """Whether nothing but times differs."""

    def timeless(entries: Sequence[Object]) -> list[Object]:
        found = [{key: value for key, value in entry.items() if key != "time"} for entry in entries]
        return sorted(found, key=lambda e: (e["operation"], e.get("manager", ""), str(e.get("subresource"))))

    return len(left) == len(right) and timeless(left) == timeless(right)


# -- apply ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Conflict:
    entry: Object
    path: str

    @property
    def manager(self) -> str:
        found = go_quote(self.entry.get("manager", ""))
        if subresource := self.entry.get("subresource"):
            found += f" with subresource {go_quote(subresource)}"
        return f"{found} using {self.entry['apiVersion']}" if self.entry["operation"] == "Update" else found


class Conflicts(Exception):
    """Others own, with other values, what was applied without force."""

    def __init__(self, found: list[_Conflict], sets: FieldSet) -> None:
        super().__init__(found)
        self.found = found
        self.sets = sets

    def error(self) -> StatusError:
        """409 with a cause for each field."""
        if len(self.found) == 1:
            only = self.found[0]
            message = f"Apply failed with 1 conflict: conflict with {only.manager}: {only.path}"
        else:
            by_manager: dict[str, list[str]] = {}
            for conflict in self.found:
                by_manager.setdefault(conflict.manager, []).append(f"- {conflict.path}")
            lines = [f"conflicts with {name}:\n" + "\n".join(paths) for name, paths in sorted(by_manager.items())]
            message = f"Apply failed with {len(self.found)} conflicts: " + "\n".join(lines)
        causes = [
            {"reason": "FieldManagerConflict", "message": f"conflict with {c.manager}", "field": c.path}
            for c in self.found
        ]
        return StatusError(409, "Conflict", message, details={"causes": causes})


def applied(
    rules: Rules, live: Object | None, config: Object, manager: Manager, time: str, *, force: bool
) -> Steps[Object]:
    """What applying `config` makes of `live` (None: there is no object yet), with its managedFields; not decoded yet.

    Raises StatusError: 409 for conflicts, 500 for a config that does not fit the structure.
    """
    if found := list(typed.problems(rules.structure, config)):
        raise _unfit("patch", config, config, found)
    before = rules.zero if live is None else live
    entries = entries_of(before)
    if not entries and live is not None:
        first = Manager(BEFORE_FIRST_APPLY, "Update", manager.api_version, manager.subresource)
        entries = yield from updated(rules, None, live, None, first, time)
    base = _without_managed_fields(before)
    try:
        made = yield from _apply(rules, base, entries, config, manager, time, force=force)
    except Conflicts as conflicts:
        if manager.name != KUBECTL:
            raise conflicts.error() from None
        made = yield from _migrated(rules, base, entries, config, manager, time, conflicts)
    except typed.ElementError:  # an update may leave what no apply could name
        raise _unfit("live", base, config, list(typed.problems(rules.structure, base))) from None
    if manager.name == KUBECTL and (metadata(made).get("annotations") or {}).get(LAST_APPLIED):
        made = _with_last_applied(made, config)
    return made


def _unfit(which: str, obj: Object, config: Object, problems: list[str]) -> StatusError:
    """500 for an object that its structure does not fit, as upstream has it."""
    about = metadata(obj)
    where = f"{about.get('namespace') or ''}/{about.get('name') or ''}"
    group, _, version = config["apiVersion"].rpartition("/")
    about_it = f"{where}; {group}/{version}, Kind={config['kind']}"
    return StatusError(500, "", f"failed to create typed {which} object ({about_it}): {_listed(problems)}")


def _listed(problems: list[str]) -> str:
    return problems[0] if len(problems) == 1 else "errors:\n" + "".join(f"  {line}\n" for line in problems)


def _without_managed_fields(obj: Object) -> Object:
    about = {name: value for name, value in metadata(obj).items() if name != "managedFields"}
    return {**obj, "metadata": about}


def _apply(
    rules: Rules,
    live: Object,
    entries: list[Object],
    config: Object,
    manager: Manager,
    time: str,
    *,
    force: bool,
) -> Steps[Object]:
    structure = rules.structure
    last = next((entry for entry in entries if manager.owns(entry)), None)
    others = [entry for entry in entries if entry is not last]
    said = rules.filter(typed.fields_of(structure, config))
    mine = stripped(said)
    new = typed.merge(structure, live, config)
    if last is not None and owned(last):
        owners: dict[str, FieldSet] = {manager.api_version: said}
        for entry in others:
            version = entry["apiVersion"]
            owners[version] = field_sets.union(owners.get(version, {}), owned(entry))
        new = yield from _pruned(InVersion(new, rules), manager.api_version, last, owners)
    touched, removed = typed.compare(structure, live, new)
    told = rules.filter(touched), rules.filter(removed)
    changes = yield from _changes(live, new, manager.api_version, told, others, config)
    if not force:
        _check(others, changes)
    kept = [left for entry in others if (left := _without(entry, changes)) is not None]
    changed = new != live
    if mine:
        moment = time if changed else (last or {}).get("time") or ""
        kept.append(manager.entry(mine, moment))
    return replace_in(new, ("metadata", "managedFields"), ordered(kept))


def _check(others: Iterable[Object], changes: Changes) -> None:
    """Raises Conflicts."""
    found: list[_Conflict] = []
    sets: FieldSet = {}
    for entry in others:
        change = changes[entry["apiVersion"]]
        if change is None:
            continue
        shared = field_sets.intersection(owned(entry), change[0])
        found += [_Conflict(entry, path) for path in field_sets.paths(shared)]
        sets = field_sets.union(sets, shared)
    if found:
        raise Conflicts(found, sets)


def _pruned(merged: InVersion, own: str, last: Object, owners: Mapping[str, FieldSet]) -> Steps[Object]:
    """`merged`, of the version `own`, without what was applied last time and is no longer owned by anybody.

    It is done in the version that was applied last, and what others own is put back in theirs. `owners` are by version.
    """
    version = last["apiVersion"]
    found = yield from _in(merged, own, version)
    if found is None:
        return merged.obj
    structure = found.rules.structure
    gone = typed.with_named_fields(structure, owned(last))
    pruned = InVersion(typed.remove(structure, found.obj, gone) or {}, found.rules)
    at = version
    for theirs in sorted(owners, key=lambda each: (each != version, each)):
        whole, rest = (yield from _in(found, version, theirs)), (yield from _in(pruned, at, theirs))
        if whole is not None and rest is not None:
            pruned, at = _put_back(whole, rest, owners[theirs]), theirs
    rest = yield from _in(pruned, at, version)
    if rest is None:
        return merged.obj
    gone = field_sets.intersection(field_sets.difference(_named(found), _named(rest)), gone)
    result = yield from _in(InVersion(typed.remove(structure, found.obj, gone) or {}, found.rules), version, own)
    return merged.obj if result is None else result.obj


def _in(found: InVersion, at: str, version: str) -> Steps[InVersion | None]:
    return found if at == version else (yield Wanted(found.obj, version))


def _named(found: InVersion) -> FieldSet:
    return typed.with_named_fields(found.rules.structure, typed.fields_of(found.rules.structure, found.obj))


def _put_back(whole: InVersion, pruned: InVersion, owners: FieldSet) -> InVersion:
    """What is left of the whole when all goes but what is left already and what has owners."""
    structure = whole.rules.structure
    kept = field_sets.union(_named(pruned), typed.with_named_fields(structure, owners))
    return InVersion(typed.remove(structure, whole.obj, field_sets.difference(_named(whole), kept)) or {}, whole.rules)


def _migrated(
    rules: Rules,
    live: Object,
    entries: list[Object],
    config: Object,
    manager: Manager,
    time: str,
    conflicts: Conflicts,
) -> Steps[Object]:
    """kubectl may take what its own client-side apply wrote: conflicts on those fields are none."""
    allowed: FieldSet = {}
    text = (metadata(live).get("annotations") or {}).get(LAST_APPLIED)
    if text:
        try:
            before = json.loads(text)
        except ValueError:
            before = None
        if isinstance(before, dict):
            # What somebody changed since is no longer what kubectl wrote.
            touched, _ = typed.compare(rules.structure, before, live)
            allowed = field_sets.difference(typed.fields_of(rules.structure, before), touched)
    if not field_sets.difference(conflicts.sets, allowed):
        return (yield from _apply(rules, live, entries, config, manager, time, force=True))
    paths = set(field_sets.paths(allowed))
    left = [conflict for conflict in conflicts.found if conflict.path not in paths]
    raise Conflicts(left, conflicts.sets).error() from None


def _with_last_applied(obj: Object, config: Object) -> Object:
    """The annotation of client-side apply follows, so that a user may go back to it."""
    about = {k: v for k, v in metadata(config).items() if k != "managedFields"}
    if "annotations" in about:
        about["annotations"] = {k: v for k, v in (about["annotations"] or {}).items() if k != LAST_APPLIED}
    text = json.dumps({**config, "metadata": about}, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    annotations = {**metadata(obj).get("annotations", {}), LAST_APPLIED: text}
    if sum(len(k.encode()) + len(v.encode()) for k, v in annotations.items()) > MAX_ANNOTATIONS_BYTES:
        del annotations[LAST_APPLIED]
    return replace_in(obj, ("metadata", "annotations"), annotations)
