"""What a request brings along besides its object, and what a verb gives back: small values shared by verbs, app and
local client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import orjson

from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.store.store import Entry

FieldValidation = Literal["Ignore", "Warn", "Strict"]

_OPTIONS = {"CREATE": "CreateOptions", "UPDATE": "UpdateOptions"}


@dataclass(slots=True)
class RequestContext:
    """Who asks and how. `warnings` grows while the request is served; the server sends them as Warning headers."""

    user: User
    dry_run: bool = False
    field_manager: str = ""
    user_agent_manager: str = ""
    """Who owns what is written where the request names no field manager."""
    force: bool = False
    """Whether an apply takes fields from their owners."""
    field_validation: FieldValidation = "Warn"
    strict_errors: list[str] = field(default_factory=list)
    """What strict decoding found wrong with the body's text: fields given twice."""
    body_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    """What admission notes for the audit log."""

    def write_options(self, operation: str) -> Object:
        """CreateOptions or UpdateOptions, as admission plugins and webhooks see them."""
        kind = _OPTIONS.get(operation)
        if kind is None:
            return {}
        found: Object = {"kind": kind, "apiVersion": "meta.k8s.io/v1"}
        if self.dry_run:
            found["dryRun"] = ["All"]
        if self.field_manager:
            found["fieldManager"] = self.field_manager
        return found

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


class Answer:
    """What a verb answers: an object, made here or `stored`. `code` is the HTTP status."""

    __slots__ = ("_obj", "code", "stored")

    def __init__(self, obj: Object | None = None, stored: Entry | None = None, code: int = 200) -> None:
        self._obj = obj
        self.stored = stored
        self.code = code

    @property
    def obj(self) -> Object:
        """The object, read-only."""
        if self._obj is not None:
            return self._obj
        assert self.stored is not None
        return self.stored.obj

    @property
    def encoded(self) -> bytes:
        """Its JSON, made only where it is not stored."""
        return self.stored.encoded if self.stored is not None else orjson.dumps(self._obj)

    def with_code(self, code: int) -> Answer:
        return Answer(self._obj, self.stored, code)


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """metav1.DeleteOptions; None means not given. `grace_s` is in seconds."""

    grace_s: int | None = None
    uid: str | None = None
    resource_version: str | None = None
    propagation: str | None = None
    orphan_dependents: bool | None = None

    def as_object(self, dry_run: bool) -> Object:
        """As admission plugins and webhooks see it."""
        obj: Object = {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}
        if self.grace_s is not None:
            obj["gracePeriodSeconds"] = self.grace_s
        preconditions = {k: v for k, v in (("uid", self.uid), ("resourceVersion", self.resource_version)) if v}
        if preconditions:
            obj["preconditions"] = preconditions
        if self.propagation is not None:
            obj["propagationPolicy"] = self.propagation
        if self.orphan_dependents is not None:
            obj["orphanDependents"] = self.orphan_dependents
        if dry_run:
            obj["dryRun"] = ["All"]
        return obj
