"""Which FlowSchema a request is of, and what tells flows of one schema apart.

Source: k8s.io/apiserver, util/flowcontrol/rule.go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from kone.apimachinery.objects import Object, dig, name_of, uid_of
from kone.apimachinery.users import SERVICE_ACCOUNT_PREFIX, User
from kone.apiserver.requests import RequestInfo

EVERY: Final = "*"
_Matches = Callable[[User], bool]


class Schema:
    """A FlowSchema, read once. `level` is the name of its PriorityLevelConfiguration."""

    def __init__(self, obj: Object) -> None:
        spec = obj["spec"]
        self.name = name_of(obj)
        self.uid = uid_of(obj)
        self.precedence: int = spec["matchingPrecedence"]
        self.level: str = spec["priorityLevelConfiguration"]["name"]
        self._distinguisher: str = dig(spec, "distinguisherMethod", "type", default="")
        self._rules = [
            ([_subject(subject) for subject in rule.get("subjects") or ()], rule) for rule in spec.get("rules") or ()
        ]

    def matches(self, user: User, info: RequestInfo) -> bool:
        """Whether any rule has the user and the request."""
        for subjects, rule in self._rules:
            if any(is_of(user) for is_of in subjects):
                if info.resource:
                    found = any(_has_resource(each, info) for each in rule.get("resourceRules") or ())
                else:
                    found = any(_has_path(each, info) for each in rule.get("nonResourceRules") or ())
                if found:
                    return True
        return False

    def flow_hash(self, user: User, info: RequestInfo) -> int:
        """64 bits that are the same for all requests of a flow."""
        by = {"ByUser": user.name, "ByNamespace": info.namespace}.get(self._distinguisher, "")
        digest = hashlib.sha256(f"{self.name}\0{by}".encode()).digest()
        return int.from_bytes(digest[:8], "little")


def in_order(schemas: Iterable[Schema]) -> list[Schema]:
    """As they are tried: the lowest precedence first, and of one precedence by name."""
    return sorted(schemas, key=lambda schema: (schema.precedence, schema.name))


def deal(flow_hash: int, queues: int, hand_size: int) -> tuple[int, ...]:
    """The hand of a flow: `hand_size` different queues of 0 to `queues` - 1 (shuffle sharding).

    Two queues of five for the hash 7: 7 % 5 = 2, then 7 // 5 % 4 = 1 of the four that are left: queues 2 and 1.
    """
    hand: list[int] = []
    for taken in range(hand_size):
        flow_hash, card = divmod(flow_hash, queues - taken)
        for other in sorted(hand):
            if card >= other:
                card += 1
        hand.append(card)
    return tuple(hand)


def _subject(subject: Mapping[str, Any]) -> _Matches:
    kind = subject.get("kind", "")
    if kind == "User":
        name = dig(subject, "user", "name", default="")
        return lambda user: name in (EVERY, user.name)
    if kind == "Group":
        group = dig(subject, "group", "name", default="")
        return lambda user: group == EVERY or group in user.groups
    account = subject.get("serviceAccount") or {}
    prefix = f"{SERVICE_ACCOUNT_PREFIX}{account.get('namespace', '')}:"
    if account.get("name") == EVERY:
        return lambda user: user.name.startswith(prefix)
    full = prefix + account.get("name", "")
    return lambda user: user.name == full


def _has_resource(rule: Mapping[str, Any], info: RequestInfo) -> bool:
    named = f"{info.resource}/{info.subresource}" if info.subresource else info.resource
    if not (
        _has(rule.get("verbs"), info.verb)
        and _has(rule.get("resources"), named)
        and _has(rule.get("apiGroups"), info.group)
    ):
        return False
    return _has(rule.get("namespaces"), info.namespace) if info.namespace else bool(rule.get("clusterScope"))


def _has_path(rule: Mapping[str, Any], info: RequestInfo) -> bool:
    if not _has(rule.get("verbs"), info.verb):
        return False
    for url in rule.get("nonResourceURLs") or ():
        if url in (EVERY, info.path):
            return True
        prefix = url.removesuffix("*")
        if info.path.startswith(prefix if prefix.endswith("/") else prefix + "/"):
            return True
    return False


def _has(listed: Sequence[str] | None, value: str) -> bool:
    return listed is not None and (value in listed or listed == [EVERY])
