"""MutatingAdmissionWebhook and ValidatingAdmissionWebhook: other programs are asked about writes.

Mutating webhooks are asked one after the other, in the order of their configurations' names, each about what the one
before left; validating ones all at once. A webhook that cannot be asked, or answers nonsense, is as good as its
failurePolicy says. With no configurations a write costs one look at an empty list.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from kone.admission.metrics import AdmissionMetrics, Kind
from kone.admission.plugin import Attributes, Authorizer, Caches, Plugin
from kone.admission.policy_variables import variables_of
from kone.admission.webhooks_matching import Invocation, Matcher, hooks_of, is_exempt
from kone.admission.webhooks_review import BadAnswer, Response, denial, read, review
from kone.apimachinery.cel import MATCH_CONDITIONS_BUDGET, CelError, CelSyntaxError, Program
from kone.apimachinery.config_files import load, refuse
from kone.apimachinery.errors import StatusError, forbidden, go_quote, internal_error, invalid_value
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.patch import json_patch
from kone.apimachinery.schema import strict_decode
from kone.registry.policy_expressions import environment
from kone.registry.resource import Registry

log = logging.getLogger(__name__)

GROUP = "admissionregistration.k8s.io"
CALL_FAILED = 503  # the code that upstream counts where a webhook cannot be asked


class CallFailed(Exception):
    """A webhook could not be asked; the text is upstream's: 'Post "https://…": dial tcp …'. Whether it `is_transient`:
    the next attempt may be better."""

    def __init__(self, text: str, *, is_transient: bool = False) -> None:
        super().__init__(text)
        self.is_transient = is_transient


class Backend(Protocol):
    """A program that answers one kind of question."""

    async def post(self, body: Object) -> Any:
        """The decoded answer. Raises CallFailed."""


class WebhookCaller(Protocol):
    """Asks a webhook over HTTPS (apiserver.webhook_client)."""

    async def call(self, config: Mapping[str, Any], body: Object, *, timeout_s: float) -> Any:
        """The decoded answer of the webhook that a clientConfig names. Raises CallFailed, within the timeout."""


class WebhookDoor(WebhookCaller, Protocol):
    """Asks webhooks, as nobody or as somebody, and programs that are configured by kubeconfigs."""

    def identified(self, kubeconfig: str) -> WebhookCaller:
        """The same, showing webhooks the identities of a kubeconfig. Raises ValueError."""

    def backend(self, kubeconfig: str) -> Backend:
        """The program that a kubeconfig names. Raises ValueError."""


WEBHOOK_CONFIGURATIONS = ("apiserver.config.k8s.io/v1",)


def parse_kubeconfig_file(text: str) -> str:
    """The path that a WebhookAdmissionConfiguration names. Raises ConfigFileError."""
    found = load(text, "WebhookAdmissionConfiguration", WEBHOOK_CONFIGURATIONS, {"kubeConfigFile": str})
    path = str(found.get("kubeConfigFile") or "")
    if path and not path.startswith("/"):
        refuse([invalid_value("kubeConfigFile", path, "must be an absolute file path")])
    return path


Finish = Callable[[Attributes, Object], Object]
"""Decodes and defaults what a patch made, as the kind's own. Raises StatusError."""


def finisher(registry: Registry) -> Finish:
    """Reads what a patch made as its kind's schema does, and fills in the kind's defaults."""

    def finish(a: Attributes, obj: Object) -> Object:
        resource = registry.get(a.resource)
        if resource is None or a.kind != resource.gvk:
            return obj
        known, _ = resource.custom(obj) if resource.custom is not None else strict_decode(obj, a.kind)
        meta = known.get("metadata") or {}
        rest = {key: value for key, value in known.items() if key not in ("kind", "apiVersion", "metadata")}
        made: Object = {"kind": a.kind.kind, "apiVersion": a.kind.api_version, "metadata": meta, **rest}
        if a.operation in ("CREATE", "UPDATE"):
            resource.strategy.default(made)
        return made

    return finish


class _Hook:
    """One webhook of one configuration."""

    def __init__(self, configuration: Object, hook: Mapping[str, Any], key: str, index: int) -> None:
        self.configuration: str = configuration["metadata"]["name"]
        self.spec, self.key, self.index = hook, key, index
        self.name: str = hook["name"]
        self._conditions: list[tuple[str, Program | CelSyntaxError]] | None = None

    @property
    def conditions(self) -> list[tuple[str, Program | CelSyntaxError]]:
        if self._conditions is None:
            self._conditions = [(each["name"], _compiled(each["expression"])) for each in self._declared()]
        return self._conditions

    def _declared(self) -> list[Mapping[str, Any]]:
        return self.spec.get("matchConditions") or []

    @property
    def fails_open(self) -> bool:
        return self.spec.get("failurePolicy") == "Ignore"


def _compiled(expression: str) -> Program | CelSyntaxError:
    try:
        return environment().compile(expression)
    except CelSyntaxError as error:
        return error


class _Webhooks(Plugin):
    """What both kinds share."""

    operations = frozenset({"CREATE", "UPDATE", "DELETE", "CONNECT"})
    subresources = None
    plural: str

    def __init__(
        self,
        caches: Caches,
        matcher: Matcher,
        caller: WebhookCaller,
        authorizer: Authorizer,
        metrics: AdmissionMetrics,
    ) -> None:
        self._metrics = metrics
        self._cache = caches.of(GROUP, self.plural)
        self._matcher, self._caller, self._authorizer = matcher, caller, authorizer
        self._hooks: list[_Hook] | None = None
        self._cache.subscribe(self._changed)

    def _changed(self, event: object) -> None:
        self._hooks = None

    def hooks(self) -> list[_Hook]:
        if self._hooks is None:
            found = hooks_of(entry.obj for entry in self._cache.list())
            self._hooks = [_Hook(*each, i) for i, each in enumerate(found)]
        return self._hooks

    async def _concerned(self, a: Attributes, hook: _Hook) -> Invocation | None:
        """What the hook is to be shown, or None. Raises StatusError where its conditions cannot be judged."""
        invocation = self._matcher.invocation(a, hook.spec, hook.spec.get("rules") or ())
        if invocation is None or not hook.conditions:
            return invocation
        values = variables_of(
            a,
            invocation,
            obj=await self._matcher.converted(a.obj, invocation, a.resource),
            old=await self._matcher.converted(a.old, invocation, a.resource),
            namespace=self._matcher.namespace(a),
            authorizer=self._authorizer,
        )
        error = ""
        budget = MATCH_CONDITIONS_BUDGET
        for _, program in hook.conditions:
            try:
                if isinstance(program, CelSyntaxError):
                    raise CelError(f"compilation error: {program}")
                result = program.evaluate(values, limit=min(budget, MATCH_CONDITIONS_BUDGET))
                budget -= result.cost
            except CelError as problem:
                source = program.source if isinstance(program, Program) else ""
                error = error or f"expression '{source}' resulted in error: {problem}"
                continue
            if result.value is not True:
                return None  # one condition that does not hold outweighs errors of others
        if not error:
            return invocation
        if hook.fails_open:
            log.warning("match conditions of webhook %s failed, ignoring it: %s", hook.name, error)
            return None
        raise forbidden(a.resource.group_resource, a.name, error)

    async def _ask(self, a: Attributes, hook: _Hook, invocation: Invocation, *, mutating: bool) -> Response | None:
        """What the hook says; None where it cannot be asked and may be ignored. Raises StatusError."""
        convert = self._matcher.converted
        obj, old = await convert(a.obj, invocation, a.resource), await convert(a.old, invocation, a.resource)
        timeout_s = float(hook.spec.get("timeoutSeconds") or 10)
        start = self._metrics.now()

        def count(code: int, error: str = "", *, ignored: bool = False) -> None:
            seconds = self._metrics.now() - start
            self._metrics.webhook(hook.name, self.counted, a.operation, seconds, code, error=error, ignored=ignored)

        try:
            sent = review(
                a, invocation, str(uuid.uuid4()), list(hook.spec.get("admissionReviewVersions") or ()), obj, old
            )
            try:
                answer = await self._caller.call(hook.spec["clientConfig"], sent, timeout_s=timeout_s)
            except CallFailed as error:
                raise BadAnswer(f"failed to call webhook: {error}") from None
            response = read(answer, sent, mutating=mutating)
        except BadAnswer as error:
            text = f"failed calling webhook {go_quote(hook.name)}: {error}"
            count(CALL_FAILED, "calling_webhook_error", ignored=hook.fails_open)
            if hook.fails_open:
                log.warning("%s; failurePolicy is Ignore", text)
                a.annotate(f"failed-open.{self._annotation(a, hook)}", hook.name)
                return None
            raise internal_error(text) from None
        for key, value in response.annotations.items():
            a.annotate(f"{hook.name}/{key}", value)
        for text in response.warnings:
            a.warn(text)
        if not response.allowed:
            refusal = denial(hook.name, response.status)
            count(refusal.code, "no_error")
            raise refusal
        count(200)
        return response

    annotated: str
    counted: Kind

    def _annotation(self, a: Attributes, hook: _Hook) -> str:
        return f"{self.annotated}.webhook.admission.k8s.io/round_{int(a.reinvoking)}_index_{hook.index}"


class MutatingAdmissionWebhook(_Webhooks):
    name = "MutatingAdmissionWebhook"
    reinvoked = True
    plural = "mutatingwebhookconfigurations"
    annotated = "mutation"
    counted = "admit"

    def __init__(
        self,
        caches: Caches,
        matcher: Matcher,
        caller: WebhookCaller,
        authorizer: Authorizer,
        metrics: AdmissionMetrics,
        finish: Finish,
    ) -> None:
        super().__init__(caches, matcher, caller, authorizer, metrics)
        self._finish = finish

    async def mutate(self, a: Attributes) -> None:
        hooks = self.hooks()
        if not hooks or is_exempt(a):
            return
        asked: set[str] = set()
        for hook in hooks:
            if a.reinvoking and hook.key not in a.reinvoke:
                continue
            invocation = await self._concerned(a, hook)
            if invocation is None:
                continue
            mutated = await self._mutate(a, hook, invocation)
            said = {"configuration": hook.configuration, "webhook": hook.name, "mutated": mutated}
            a.annotate(self._annotation(a, hook), json.dumps(said, separators=(",", ":")))
            if mutated:
                a.changed = True
                a.reinvoke |= asked
            if hook.spec.get("reinvocationPolicy") == "IfNeeded":
                asked.add(hook.key)
        a.left(asked)

    async def _mutate(self, a: Attributes, hook: _Hook, invocation: Invocation) -> bool:
        """Whether the hook changed the object."""
        response = await self._ask(a, hook, invocation, mutating=True)
        if response is None or not response.patch or a.obj is None:
            return False
        shown = await self._matcher.converted(a.obj, invocation, a.resource)
        assert shown is not None
        try:
            patched = json_patch(deep_copy(shown), response.patch)
        except StatusError as error:
            raise internal_error(str(error)) from None
        if invocation.resource != a.resource:
            own = Invocation(a.resource, a.kind)
            patched = await self._matcher.converted(patched, own, invocation.resource)
            assert patched is not None
        finished = self._finish(a, patched)
        if finished == a.obj:
            return False
        a.obj = finished
        return True


class ValidatingAdmissionWebhook(_Webhooks):
    name = "ValidatingAdmissionWebhook"
    plural = "validatingwebhookconfigurations"
    annotated = "validating"
    counted = "validating"

    async def validate(self, a: Attributes) -> None:
        hooks = self.hooks()
        if not hooks or is_exempt(a):
            return
        concerned = [(hook, found) for hook in hooks if (found := await self._concerned(a, hook)) is not None]
        if len(concerned) == 1:
            await self._ask(a, *concerned[0], mutating=False)
        elif concerned:
            asked = (self._ask(a, hook, found, mutating=False) for hook, found in concerned)
            for outcome in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
