"""ListOptions, DeleteOptions and the write options: parsed from the query or a body, and validated, in upstream's
words.

Sources of the rules: k8s.io/apimachinery validation of options, internalversion ValidateListOptions, k8s.io/apiserver
storage.
"""

from __future__ import annotations

import base64
import binascii
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.errors import (
    FieldError,
    StatusError,
    bad_request,
    forbidden_field,
    go_quote,
    invalid,
    invalid_value,
    not_supported,
)
from kone.apimachinery.objects import Object
from kone.apiserver.context import DeleteOptions, FieldValidation

Query = Mapping[str, Sequence[str]]
"""Decoded query parameters, every value of each in order."""

INT64_MAX = 2**63 - 1
UINT64_MAX = 2**64 - 1
UNSAFE = "ignoreStoreReadErrorWithClusterBreakingPotential"
TOKEN_VERSION = "meta.k8s.io/v1"


def first(query: Query, name: str, default: str = "") -> str:
    values = query.get(name)
    return values[0] if values else default


def parse_int(text: str) -> int:
    """A decimal int64 as strconv.ParseInt reads it. Raises 400 with its words."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()):
        raise bad_request(f"strconv.ParseInt: parsing {go_quote(text)}: invalid syntax")
    number = int(text)
    if not -INT64_MAX - 1 <= number <= INT64_MAX:
        raise bad_request(f"strconv.ParseInt: parsing {go_quote(text)}: value out of range")
    return number


def parse_uint(text: str) -> int:
    """A decimal uint64 as strconv.ParseUint reads it. Raises ValueError with its words."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"strconv.ParseUint: parsing {go_quote(text)}: invalid syntax")
    if int(text) > UINT64_MAX:
        raise ValueError(f"strconv.ParseUint: parsing {go_quote(text)}: value out of range")
    return int(text)


def parse_bool(text: str) -> bool:
    """A boolean query parameter that is there: everything is true but "0" and "false", even nothing (`?watch`)."""
    return text != "0" and text.lower() != "false"


@dataclass(frozen=True, slots=True)
class ListOptions:
    """metav1.ListOptions. `timeout_s` is None where none was given; `send_initial_events` is None where it was not
    given."""

    labels: str = ""
    fields: str = ""
    limit: int = 0
    continue_: str = ""
    resource_version: str = ""
    resource_version_match: str = ""
    watch: bool = False
    timeout_s: int | None = None
    allow_bookmarks: bool = False
    send_initial_events: bool | None = None


NO_OPTIONS = ListOptions()


def parse_list_options(query: Query, *, watch: bool = False) -> ListOptions:
    """The ListOptions of a query. Raises 400 for what cannot be parsed and 422 for what may not be combined."""
    if not query:
        return ListOptions(watch=True) if watch else NO_OPTIONS
    options = ListOptions(
        labels=first(query, "labelSelector"),
        fields=first(query, "fieldSelector"),
        limit=parse_int(query["limit"][0]) if "limit" in query else 0,
        continue_=first(query, "continue"),
        resource_version=first(query, "resourceVersion"),
        resource_version_match=first(query, "resourceVersionMatch"),
        watch=watch or parse_bool(first(query, "watch", "0")),
        timeout_s=parse_int(query["timeoutSeconds"][0]) if "timeoutSeconds" in query else None,
        allow_bookmarks=parse_bool(first(query, "allowWatchBookmarks", "0")),
        send_initial_events=parse_bool(query["sendInitialEvents"][0]) if "sendInitialEvents" in query else None,
    )
    errors = list(_list_option_errors(options))
    if errors:
        raise invalid("ListOptions.meta.k8s.io", "", errors)
    return options


def _list_option_errors(options: ListOptions) -> list[FieldError]:
    match, version = options.resource_version_match, options.resource_version
    if options.watch:
        return _watch_option_errors(options)
    found: list[FieldError] = []
    if match:
        if not version:
            found.append(
                forbidden_field(
                    "resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"
                )
            )
        if options.continue_:
            found.append(
                forbidden_field("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
            )
        if match not in ("Exact", "NotOlderThan"):
            found.append(not_supported("resourceVersionMatch", match, ("Exact", "NotOlderThan", "")))
        if match == "Exact" and version == "0":
            found.append(
                forbidden_field(
                    "resourceVersionMatch", 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
                )
            )
    if options.send_initial_events is not None:
        found.append(forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    return found


def _watch_option_errors(options: ListOptions) -> list[FieldError]:
    match = options.resource_version_match
    found: list[FieldError] = []
    if options.send_initial_events is not None and match != "NotOlderThan":
        why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        found.append(forbidden_field("resourceVersionMatch", why))
    if match:
        if options.send_initial_events is None:
            found.append(
                forbidden_field(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                )
            )
        if match != "NotOlderThan":
            found.append(not_supported("resourceVersionMatch", match, ("NotOlderThan",)))
        if options.continue_:
            found.append(
                forbidden_field("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
            )
    return found


def encode_continue(revision: int, start: str) -> str:
    """The continue token of a list at `revision` that goes on at key `start`, relative to the list's prefix."""
    text = json.dumps({"v": TOKEN_VERSION, "rv": revision, "start": start}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_continue(token: str) -> tuple[int, str]:
    """(revision, start key) of a continue token; revision -1 goes on at the current state. Raises 400."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise _bad_token("illegal base64 data at input byte 0") from None
    try:
        found = json.loads(raw)
    except ValueError:
        raise _bad_token(f"invalid character {_go_character(raw)} looking for beginning of value") from None
    if not isinstance(found, dict):
        raise _bad_token("json: cannot unmarshal into Go value of type storage.continueToken")
    version, revision, start = found.get("v", ""), found.get("rv", 0), found.get("start", "")
    if version != TOKEN_VERSION:
        raise _bad_token(f"server does not recognize this encoded version {version}")
    if not revision:
        raise _bad_token(f"incorrect encoded start resourceVersion (version {TOKEN_VERSION})")
    if not start:
        raise _bad_token(f"encoded start key empty (version {TOKEN_VERSION})")
    rooted = start if start.startswith("/") else "/" + start
    if posixpath.normpath(rooted) != rooted:
        raise bad_request(f"invalid continue token: continue key is not valid: {start}")
    return int(revision), start


def _bad_token(why: str) -> StatusError:
    return bad_request(f"invalid continue token: continue key is not valid: {why}")


def _go_character(raw: bytes) -> str:
    """The first byte as encoding/json names it: 'x', or '\\u008e' where it does not print."""
    character = chr(raw[0]) if raw else " "
    return f"'{character}'" if character.isprintable() and ord(character) < 0x7F else f"'\\u{ord(character):04x}'"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What CreateOptions, UpdateOptions and PatchOptions share, and `force` of PatchOptions."""

    dry_run: bool = False
    field_manager: str = ""
    field_validation: FieldValidation = "Warn"
    force: bool | None = None


_DEFAULT_WRITE_OPTIONS = WriteOptions()
_VALIDATIONS: dict[str, FieldValidation] = {"Ignore": "Ignore", "Warn": "Warn", "Strict": "Strict"}
FIELD_MANAGER_MAX = 128  # characters; k8s.io/apimachinery ValidateFieldManager


def parse_write_options(query: Query, kind: str, *, apply: bool = False) -> WriteOptions:
    """The options of a write; `kind` is "CreateOptions", "UpdateOptions" or "PatchOptions". Raises 422."""
    if not query:
        return _DEFAULT_WRITE_OPTIONS if not apply else _checked(WriteOptions(), kind, apply, (), "")
    validation = first(query, "fieldValidation")
    options = WriteOptions(
        dry_run="All" in query.get("dryRun", ()),
        field_manager=first(query, "fieldManager"),
        field_validation=_VALIDATIONS.get(validation, "Warn"),
        force=parse_bool(query["force"][0]) if "force" in query else None,
    )
    return _checked(options, kind, apply, query.get("dryRun", ()), validation)


def _checked(options: WriteOptions, kind: str, apply: bool, dry_run: Sequence[str], validation: str) -> WriteOptions:
    errors: list[FieldError] = []
    if kind == "PatchOptions":
        if apply:
            if not options.field_manager:
                errors.append(FieldError("FieldValueRequired", "fieldManager", "is required for apply patch"))
        elif options.force is not None:
            errors.append(forbidden_field("force", "may not be specified for non-apply patch"))
    errors.extend(field_manager_errors(options.field_manager))
    errors.extend(_dry_run_errors(dry_run))
    if validation and validation not in _VALIDATIONS:
        errors.append(not_supported("fieldValidation", validation, ("", "Ignore", "Strict", "Warn")))
    if errors:
        raise invalid(f"{kind}.meta.k8s.io", "", errors)
    return options


def field_manager_errors(manager: str) -> list[FieldError]:
    found: list[FieldError] = []
    if len(manager.encode()) > FIELD_MANAGER_MAX:
        found.append(FieldError("FieldValueTooLong", "fieldManager", f"may not be more than {FIELD_MANAGER_MAX} bytes"))
    for position, character in enumerate(manager):
        if not character.isprintable():
            found.append(
                invalid_value(
                    "fieldManager", manager, f"invalid character U+{ord(character):04X} (at position {position})"
                )
            )
    return found


def _dry_run_errors(values: Sequence[str]) -> list[FieldError]:
    if all(value == "All" for value in values):
        return []
    return [not_supported("dryRun", list(values), ("All",))]


def parse_delete_query(query: Query) -> tuple[DeleteOptions, bool]:
    """(DeleteOptions, dry run) of a query. Raises 400 and 422."""
    if not query:
        return DeleteOptions(), False
    return _delete_options(
        grace_s=parse_int(query["gracePeriodSeconds"][0]) if "gracePeriodSeconds" in query else None,
        uid=query["uid"][0] if "uid" in query else None,
        resource_version=query["resourceVersion"][0] if "resourceVersion" in query else None,
        propagation=query["propagationPolicy"][0] if "propagationPolicy" in query else None,
        orphan=parse_bool(query["orphanDependents"][0]) if "orphanDependents" in query else None,
        dry_run=query.get("dryRun", ()),
    )


def _unsafe_errors(body: Object) -> list[FieldError]:
    """ignoreStoreReadErrorWithClusterBreakingPotential goes with no other option (and does nothing here: what is stored
    can be read)."""
    if not body.get(UNSAFE):
        return []
    others = ("propagationPolicy", "orphanDependents", "gracePeriodSeconds", "preconditions")
    return [
        invalid_value(UNSAFE, True, f"cannot be set together with .{name}")
        for name in others
        if body.get(name) is not None
    ]


def parse_delete_body(body: Object) -> tuple[DeleteOptions, bool]:
    """(DeleteOptions, dry run) of a DeleteOptions object. Raises 422."""
    if errors := _unsafe_errors(body):
        raise invalid("DeleteOptions.meta.k8s.io", "", errors)
    preconditions: Mapping[str, Any] = body.get("preconditions") or {}
    return _delete_options(
        grace_s=body.get("gracePeriodSeconds"),
        uid=preconditions.get("uid"),
        resource_version=preconditions.get("resourceVersion"),
        propagation=body.get("propagationPolicy"),
        orphan=body.get("orphanDependents"),
        dry_run=body.get("dryRun") or (),
    )


def _delete_options(
    *,
    grace_s: int | None,
    uid: str | None,
    resource_version: str | None,
    propagation: str | None,
    orphan: bool | None,
    dry_run: Sequence[str],
) -> tuple[DeleteOptions, bool]:
    errors: list[FieldError] = []
    if propagation is not None and orphan is not None:
        errors.append(
            invalid_value(
                "propagationPolicy", propagation, "orphanDependents and deletionPropagation cannot be both set"
            )
        )
    if propagation is not None and propagation not in ("Foreground", "Background", "Orphan"):
        errors.append(not_supported("propagationPolicy", propagation, ("Foreground", "Background", "Orphan", "nil")))
    errors.extend(_dry_run_errors(dry_run))
    if errors:
        raise invalid("DeleteOptions.meta.k8s.io", "", errors)
    return DeleteOptions(grace_s, uid, resource_version, propagation, orphan), "All" in dry_run
