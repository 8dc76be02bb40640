"""Whether a user may, as a webhook says (SubjectAccessReview).

Authorization is asked for everywhere and answers at once; a webhook takes its time. So an answer that is not known is
`Unasked`, raised through whoever wanted to know up to where the request is served: there the webhook is asked, and
the request is served again, now by the answer. Every answer holds for a second at least, so that it is still there.

Source: k8s.io/apiserver, plugin/pkg/authorizer/webhook.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kone.aio.clock import Clock
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.cel import CelError, Program
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.auth.authorizer import Unasked, Verdict
from kone.auth.review_webhook import ReviewWebhook

log = logging.getLogger(__name__)

GROUP: Final = "authorization.k8s.io"
REMEMBERED: Final = 8192
LEAST_S: Final = 1.0
LARGEST_BYTES: Final = 10_000  # of a question whose answer is kept
_OPERATORS: Final = {"=": "In", "==": "In", "!=": "NotIn"}


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """When a webhook is asked, how long its answers hold, and what is decided where it does not answer (`denies`)."""

    authorized_s: float = 300.0
    unauthorized_s: float = 30.0
    denies: bool = False
    conditions: tuple[Program, ...] = ()


class WebhookAuthorizer:
    """One webhook of the chain."""

    def __init__(self, webhook: ReviewWebhook, rules: WebhookRules, clock: Clock) -> None:
        self._webhook, self._rules, self._clock = webhook, rules, clock
        self._known: OrderedDict[str, tuple[float, Verdict, str]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[None]] = {}

    def allowed(self, user: User, request: AccessRequest) -> tuple[Verdict, str]:
        """Raises Unasked where the webhook has to be asked first."""
        spec = review_spec(user, request)
        matches = _matches(self._rules.conditions, spec)
        if matches is None:
            return self._on_error
        if not matches:
            return False, ""
        key = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        known = self._known.get(key)
        if known is None or self._clock.monotonic() >= known[0]:
            raise Unasked(lambda: self._ask(key, spec))
        return known[1], known[2]

    @property
    def _on_error(self) -> tuple[Verdict, str]:
        return (None if self._rules.denies else False), ""

    async def _ask(self, key: str, spec: Object) -> None:
        """Who asks the same meanwhile waits for the same answer."""
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._learn(key, spec), name="access review")
        await asyncio.shield(asking)

    async def _learn(self, key: str, spec: Object) -> None:
        verdict, reason = self._on_error
        lasts_s = 0.0
        try:
            status = await self._webhook.ask(spec)
        except ValueError as error:
            log.error("webhook authorizer: %s", error)
        else:
            reason = str(status.get("reason") or "")
            allowed, denied = bool(status.get("allowed")), bool(status.get("denied"))
            verdict = None if denied else allowed
            if len(key) < LARGEST_BYTES:
                lasts_s = self._rules.authorized_s if allowed else self._rules.unauthorized_s
        finally:
            del self._asking[key]
        self._known[key] = self._clock.monotonic() + max(lasts_s, LEAST_S), verdict, reason
        self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def _matches(conditions: Sequence[Program], spec: Object) -> bool | None:
    """Whether all conditions are true; False where one is false, else None where one cannot be told."""
    unknown = False
    for program in conditions:
        try:
            if program.evaluate({"request": condition_value(spec)}).value is not True:
                return False
        except CelError as error:
            log.error("webhook authorizer: match condition %s: %s", program.source, error)
            unknown = True
    return None if unknown else True


def review_spec(user: User, request: AccessRequest) -> Object:
    """The spec of a SubjectAccessReview."""
    spec: Object = {"user": user.name}
    if user.uid:
        spec["uid"] = user.uid
    if user.groups:
        spec["groups"] = list(user.groups)
    if user.extra:
        spec["extra"] = {key: list(values) for key, values in user.extra.items()}
    if not request.resource:
        spec["nonResourceAttributes"] = {"path": request.path, "verb": request.verb}
        return spec
    asked = {
        "namespace": request.namespace,
        "verb": request.verb,
        "group": request.group,
        "version": request.version,
        "resource": request.resource,
        "subresource": request.subresource,
        "name": request.name,
    }
    attributes: Object = {key: value for key, value in asked.items() if value}
    requirements = [
        {"key": field, "operator": _OPERATORS[operator], "values": [value]}
        for field, operator, value in request.fields
        if operator in _OPERATORS
    ]
    if requirements:
        attributes["fieldSelector"] = {"requirements": requirements}
    spec["resourceAttributes"] = attributes
    return spec


_RESOURCE_KEYS: Final = ("namespace", "verb", "group", "version", "resource", "subresource", "name")


def condition_value(spec: Object) -> Object:
    """The spec as match conditions see it: what is empty is there, too."""
    value: Object = {
        "user": spec["user"],
        "uid": spec.get("uid", ""),
        "groups": spec.get("groups", []),
        "extra": spec.get("extra", {}),
    }
    if (attributes := spec.get("resourceAttributes")) is not None:
        found = {key: attributes.get(key, "") for key in _RESOURCE_KEYS}
        if "fieldSelector" in attributes:
            found["fieldSelector"] = attributes["fieldSelector"]
        value["resourceAttributes"] = found
    else:
        value["nonResourceAttributes"] = spec["nonResourceAttributes"]
    return value
