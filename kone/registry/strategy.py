"""What makes a kind that kind: its defaults, what a write may touch, its rules, its warnings. One subclass a kind.

The write path (`apiserver/verbs.py`) calls the hooks in one order for every kind, in upstream's words (registry/rest):

    create:  default → admission mutates → begin → prepare → validate_create → warnings → admission validates → commit
    update:  default → admission mutates → begin → prepare → validate_update → warnings → admission validates → commit

Only `default` and `prepare` may change the object: they are handed a private copy and write into it in place. `old` is
read-only, though parts of it may be put into the new object as they are. `generic.validate_create/update` put the rules
of metadata, which are the same for all, before the kind's own.

A kind on one screen:

    class _Widget(SpecStrategy):                     # has spec and status, counts generations
        def default(self, obj: Object) -> None:
            obj.setdefault("spec", {}).setdefault("replicas", 1)

        def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
            if obj["spec"]["replicas"] < 0:
                yield invalid_value("spec.replicas", obj["spec"]["replicas"], "must be greater than or equal to 0")
            if old is not None:
                yield from immutable(obj["spec"].get("color"), old["spec"].get("color"), "spec.color")

    WIDGETS = Resource(
        gvr=GVR("example.com", "v1", "widgets"), kind="Widget", short_names=("wd",),
        strategy=(strategy := _Widget()), status=StatusStrategy(strategy),
        columns=(NAME, Column("Desired", lambda w, now: dig(w, "spec", "replicas"), type="integer"), AGE),
    )
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from kone.apimachinery.errors import FieldError, go_quote
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import is_dns1035_label, is_dns1123_label, is_dns1123_subdomain, is_path_segment_name
from kone.apimachinery.names import is_path_segment_prefix as _is_path_segment_prefix
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User

if TYPE_CHECKING:
    from kone.registry.allocators import Allocators

NameRule = Callable[[str, bool], Sequence[str]]
"""(name, whether it is only the prefix of a generated name) -> what is wrong with it, in upstream's words."""

Undo = Callable[[], None]


def _without_trailing_dash(name: str) -> str:
    # A generated name goes on after the dash; upstream judges the prefix with that dash made harmless.
    return name[:-2] + "a" if len(name) > 1 and name.endswith("-") else name


def dns_subdomain(name: str, prefix: bool) -> Sequence[str]:
    return is_dns1123_subdomain(_without_trailing_dash(name) if prefix else name)


def dns_label(name: str, prefix: bool) -> Sequence[str]:
    return is_dns1123_label(_without_trailing_dash(name) if prefix else name)


def dns1035_label(name: str, prefix: bool) -> Sequence[str]:
    return is_dns1035_label(_without_trailing_dash(name) if prefix else name)


def path_segment(name: str, prefix: bool) -> Sequence[str]:
    return _is_path_segment_prefix(name) if prefix else is_path_segment_name(name)


class Strategy:
    """The base: no defaults, no rules. Subclasses say what differs."""

    name_rule: NameRule = staticmethod(dns_subdomain)
    """What metadata.name (and generateName, as a prefix) must look like at creation."""
    create_on_update: bool = False
    """Whether a PUT of a name that does not exist creates it (leases, RBAC, events …)."""
    unconditional_update: bool = True
    """Whether an update without metadata.resourceVersion is taken."""
    kube_finalizers: bool = True
    """Whether finalizers must be known or have a domain: true of all built-in kinds, not of custom resources."""
    metadata_twice: bool = False
    """Whether a change of metadata that is not allowed is two causes of the refusal: so it is with custom resources."""
    default_propagation: Literal["Background", "Orphan", "Unsupported"] = "Background"
    """What a delete without propagationPolicy means; "Unsupported": the policy is not looked at (events)."""
    orphan_warning: str = ""
    """What a delete without propagationPolicy warns of, "" for nothing (jobs leave their pods)."""
    allocates: bool = False
    """Whether `begin` and `companions` do anything."""
    ttl_s: float = 0.0
    """How long after its last write an object is kept; 0.0 means until it is deleted."""

    def default(self, obj: Object) -> None:
        """Put v1.37's defaults into what the client left out. Runs before admission, on create and update."""

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> Sequence[str] | None:
        """Set what the client may not: generation, status, fields of other writers. `old` is None at creation.

        Returns texts for Warning headers about what it rewrote, if any; they come before those of `warnings`.
        """
        return None

    def begin(self, obj: Object, old: Object | None, allocators: Allocators) -> Undo | None:
        """Allocate what the object claims (cluster IPs, node ports), writing it in place.

        Returns what gives it back: the caller calls it when the write fails or was a dry run. Raises StatusError when
        there is nothing to allocate.
        """
        return None

    def companions(self, obj: Object | None, old: Object | None) -> Mapping[tuple[GVR, str], Object | None]:
        """What changes in the same commit as `old` becomes `obj` (None: there is none): cluster-scoped objects by
        resource and name, as they are to be made, or None where they go. Only of a kind that `allocates`."""
        return {}

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        """The kind's own rules in upstream's order; metadata's are not repeated here."""
        return ()

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        """Texts for Warning headers."""
        return ()

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        """What fieldSelector may ask for beyond metadata.name and .namespace; same keys for every object, also {}."""
        return {}

    def unknown_field_label(self, label: str) -> str:
        """The refusal of a field selector on any other field; kinds that convert labels upstream word it their way."""
        if self.selectable_fields({}):
            return f"field label not supported: {label}"
        return f'{go_quote(label)} is not a known field selector: only "metadata.name", "metadata.namespace"'

    def is_volatile(self, obj: Object) -> bool:
        """Whether a crash may undo a change of this object: node heartbeats, which come again by themselves."""
        return False

    def graceful_deletion_s(self, obj: Object, requested: int | None) -> int | None:
        """The grace in seconds that a delete gets, None where the kind knows no grace (all but pods)."""
        return None

    def mark_deleting(self, obj: Object) -> None:
        """What more changes, in place, as metadata.deletionTimestamp is set (a Namespace turns Terminating)."""

    def has_finalizers(self, obj: Object) -> bool:
        """Whether something must yet be done before the object may go."""
        return bool(obj["metadata"].get("finalizers"))


class SpecStrategy(Strategy):
    """A kind with a spec and a status of its own subresource, whose generation counts changes of spec."""

    has_status: bool = True

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> Sequence[str] | None:
        metadata = obj["metadata"]
        if old is None:
            metadata["generation"] = 1
            if self.has_status:
                obj["status"] = self.initial_status(obj)
            return None
        if self.has_status:
            if "status" in old:
                obj["status"] = old["status"]
            else:
                obj.pop("status", None)
        self.keep(obj, old)
        generation = old["metadata"].get("generation", 0)
        if self.is_changed(obj, old):
            generation += 1
        if generation:
            metadata["generation"] = generation
        return None

    def initial_status(self, obj: Object) -> Object:
        """The status that a new object starts with, whatever the client sent."""
        return {}

    def keep(self, obj: Object, old: Object) -> None:
        """Put back, in place, what an update cannot change; runs before the generation is judged."""

    def is_changed(self, obj: Object, old: Object) -> bool:
        """Whether the generation must rise."""
        return bool(obj.get("spec") != old.get("spec"))


class StatusStrategy(Strategy):
    """The status subresource of a kind: status and some metadata come from the client, the rest stays."""

    kept: tuple[str, ...] = ("spec",)
    """Top-level fields that stay as they are."""
    kept_metadata: tuple[str, ...] = ()
    """Metadata fields that stay; ALL_METADATA where upstream resets all of it."""

    def __init__(
        self,
        main: Strategy,
        *,
        kept: tuple[str, ...] = ("spec",),
        kept_metadata: tuple[str, ...] = (),
        rules: Callable[[Object, Object], Iterable[FieldError]] | None = None,
    ) -> None:
        self.main = main
        self.kept = kept
        self.kept_metadata = kept_metadata
        self.name_rule = main.name_rule
        self.unconditional_update = main.unconditional_update
        self.kube_finalizers = main.kube_finalizers
        self._rules = rules

    def default(self, obj: Object) -> None:
        self.main.default(obj)

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        assert old is not None, "a status is only ever updated"
        for field in self.kept:
            keep_field(obj, old, field)
        for field in self.kept_metadata:
            keep_field(obj["metadata"], old["metadata"], field)
        keep_field(obj["metadata"], old["metadata"], "generation")

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        return self._rules(obj, old) if self._rules is not None and old is not None else ()

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return self.main.selectable_fields(obj)

    def graceful_deletion_s(self, obj: Object, requested: int | None) -> int | None:
        return self.main.graceful_deletion_s(obj, requested)

    def has_finalizers(self, obj: Object) -> bool:
        return self.main.has_finalizers(obj)


ALL_METADATA = ("deletionTimestamp", "generation", "labels", "annotations", "finalizers", "ownerReferences")
"""metav1.ResetObjectMetaForStatus: a status update of these kinds touches no metadata at all."""


def keep_field(obj: Object, old: Object, field: str) -> None:
    """Put the field back as it was, in place; absent where it was absent."""
    if field in old:
        obj[field] = old[field]
    else:
        obj.pop(field, None)
