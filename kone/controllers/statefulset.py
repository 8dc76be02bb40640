"""StatefulSets: pods with a name, a number and claims of their own, one after another unless they may come together."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PODS, STATEFULSETS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    replace_in,
)
from kone.apimachinery.selectors import LabelSelector, from_label_selector
from kone.client.client import EventType, Informer, Objects
from kone.controllers import stateful_claims as claims
from kone.controllers import stateful_rules as rules
from kone.controllers.controller import (
    NAMESPACE_TERMINATING,
    Context,
    Controller,
    NotYet,
    Reconciler,
    Result,
    Watch,
    for_members,
    for_object,
    has_cause,
)
from kone.controllers.history import History
from kone.controllers.pod_control import (
    claim,
    controlled_by,
    index_by_controller,
    next_availability_s,
    orphans_in,
    slow_start,
)
from kone.controllers.stateful_rules import Plan, Step, View


class StatefulSets(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(STATEFULSETS)
        self._pods: Informer = ctx.client.informer(PODS)
        self._claims: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        self._history = History(ctx.client, STATEFULSETS, "controller.kubernetes.io/hash")
        index_by_controller(self._pods)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._pods, for_members(self.primary, "StatefulSet"))
        yield Watch(self._claims, self._keys_of_claim)

    def _keys_of_claim(self, event: EventType, claim_: Object, previous: Object | None) -> Iterable[Key]:
        """A claim that has gone may be what the next pod waits for."""
        if event != "DELETED":
            return
        for owner in self.primary.list(namespace_of(claim_)):
            prefixes = (f"{name_of(template)}-{name_of(owner)}-" for template in claims.templates_of(owner))
            if any(name_of(claim_).startswith(prefix) for prefix in prefixes):
                yield key_of(owner)

    async def reconcile(self, key: Key) -> Result | None:
        owner = self.primary.get(*key)
        if owner is None:
            return None
        selector = from_label_selector(dig(owner, "spec", "selector"))
        is_member = functools.partial(rules.is_member, owner)
        candidates = [*controlled_by(self._pods, owner), *orphans_in(self._pods, key.namespace)]
        pods = await claim(self._ctx.client, PODS, STATEFULSETS, owner, candidates, selector, fits=is_member)
        revisions = await self._history.of(owner, selector)
        update, collisions = await self._update_revision(owner, revisions)
        named = dig(owner, "status", "currentRevision")
        current = next((revision for revision in revisions if name_of(revision) == named), update)
        view = View(owner, pods, current, update, self._ctx.clock.now())

        failure: Exception | None = None
        if not is_deleting(owner):
            try:
                await self._carry_out(self._plan(view), view)
            except (StatusError, NotYet) as error:
                failure = error
        view = replace(view, pods=self._members(owner, selector), now=self._ctx.clock.now())
        status = rules.make_status(view, collisions)
        if status != (owner.get("status") or {}):
            written = replace_in(owner, ("status",), status)
            await self._ctx.client.update(STATEFULSETS, written, subresource="status")
        if not is_deleting(owner):
            live = {name_of(current), name_of(update)}
            await self._history.forget(rules.revisions_to_forget(owner, revisions, view.pods, live))
        if failure is not None:
            raise failure
        min_ready_s = rules.min_ready_of(owner)
        if min_ready_s == 0 or status.get("readyReplicas", 0) == status["availableReplicas"]:
            return None
        return Result(after_s=next_availability_s(view.pods, min_ready_s, view.now) or min_ready_s)

    async def _update_revision(self, owner: Object, revisions: Objects) -> tuple[Object, int]:
        """Of a set that is being deleted, revisions go first; they must not come back for a status."""
        if not is_deleting(owner):
            return await self._history.latest(owner, revisions)
        named = dig(owner, "status", "updateRevision", default="")
        return {"metadata": {"name": named}}, int(dig(owner, "status", "collisionCount", default=0))

    def _members(self, owner: Object, selector: LabelSelector) -> Objects:
        return [
            pod
            for pod in controlled_by(self._pods, owner)
            if selector.matches(labels_of(pod)) and rules.is_member(owner, pod)
        ]

    # Decide

    def _plan(self, view: View) -> Plan:
        owner = view.owner

        def is_stale(ordinal: int) -> bool:
            if not claims.deletes_when_scaled(owner):
                return False
            pod_name = f"{name_of(owner)}-{ordinal}"
            return any(claims.is_stale(found, pod_name) for found in self._claims_of(owner, ordinal))

        def needs_owners(pod: Object) -> bool:
            return any(
                claims.corrected_owners(found, owner, pod, in_range=_in_range(owner, pod)) is not None
                for found in self._claims_of(owner, rules.ordinal_of(pod))
            )

        def needs_mending(pod: Object) -> bool:
            return not rules.has_identity(pod) or not rules.has_storage(owner, pod) or needs_owners(pod)

        return rules.make_plan(view, is_stale=is_stale, needs_mending=needs_mending, needs_owners=needs_owners)

    def _claims_of(self, owner: Object, ordinal: int) -> Objects:
        found = (self._claims.get(namespace_of(owner), name) for name in rules.claim_names(owner, ordinal))
        return [claim_ for claim_ in found if claim_ is not None]

    # Act

    async def _carry_out(self, plan: Plan, view: View) -> None:
        for phase in plan.phases:
            if plan.parallel:
                by_ordinal: dict[int, list[Step]] = {}
                for step in phase:
                    by_ordinal.setdefault(step.ordinal, []).append(step)
                groups = list(by_ordinal.values())

                async def take(number: int, groups: list[list[Step]] = groups) -> None:
                    for step in groups[number]:
                        await self._take(step, view)

                error = await slow_start(len(groups), take)
                if error is not None:
                    raise error
            else:
                for step in phase:
                    await self._take(step, view)

    async def _take(self, step: Step, view: View) -> None:
        owner = view.owner
        if step.pod is None:
            await self._create(owner, step.ordinal, view)
        elif step.act == "delete":
            await self._delete(owner, step.pod)
        elif step.act == "claims":
            await self._create_claims(owner, step.pod, step.ordinal)
            await self._own_claims(owner, step.pod)
        elif step.act == "own":
            await self._own_claims(owner, step.pod)
        else:
            await self._mend(owner, step.pod)

    async def _create(self, owner: Object, ordinal: int, view: View) -> None:
        pod = rules.make_pod(owner, ordinal, rules.revision_for(owner, ordinal, view.current, view.update))
        try:
            await self._create_claims(owner, pod, ordinal)
            created = await self._ctx.client.create(PODS, pod, namespace=namespace_of(owner))
            await self._own_claims(owner, created)
        except (StatusError, NotYet) as error:
            if not (isinstance(error, StatusError) and _is_not_worth_telling(error)):
                self._tell_failure(owner, "Create", pod, error)
            raise
        self._tell(owner, "Create", pod)

    async def _delete(self, owner: Object, pod: Object) -> None:
        try:
            await self._ctx.client.delete(PODS, name_of(pod), namespace=namespace_of(pod))
        except StatusError as error:
            if error.code != 404:
                self._tell_failure(owner, "Delete", pod, error)
                raise
        self._tell(owner, "Delete", pod)

    async def _mend(self, owner: Object, pod: Object) -> None:
        ordinal = rules.ordinal_of(pod)
        wanted = pod if rules.has_identity(pod) else rules.with_identity(pod, ordinal)
        try:
            if not rules.has_storage(owner, pod):
                wanted = rules.with_storage(owner, wanted, ordinal)
                await self._create_claims(owner, pod, ordinal)
            await self._own_claims(owner, pod)
            if wanted is not pod:
                await self._ctx.client.update(PODS, wanted)
        except (StatusError, NotYet) as error:
            self._tell_failure(owner, "Update", pod, error)
            raise
        self._tell(owner, "Update", pod)

    async def _create_claims(self, owner: Object, pod: Object, ordinal: int) -> None:
        """Make the claims that are missing. Raises NotYet when one is still being deleted."""
        failure: Exception | None = None
        for wanted in claims.claims_for(owner, ordinal):
            found = self._claims.get(namespace_of(owner), name_of(wanted))
            if found is not None:
                if is_deleting(found):
                    failure = failure or NotYet(f"pvc {name_of(wanted)} is being deleted")
                continue
            where = f"{name_of(wanted)} Pod {name_of(pod)} in StatefulSet {name_of(owner)}"
            try:
                await self._ctx.client.create(PERSISTENTVOLUMECLAIMS, wanted, namespace=namespace_of(owner))
            except StatusError as error:
                failure = failure or _prefixed(f"failed to create PVC {name_of(wanted)}", error)
                if not _is_not_worth_telling(error):
                    where = where.replace(" Pod ", " for Pod ", 1)
                    self._event(owner, "Warning", "FailedCreate", f"Create Claim {where} failed error: {error}")
            else:
                self._event(owner, "Normal", "SuccessfulCreate", f"Create Claim {where} success")
        if failure is not None:
            raise failure

    async def _own_claims(self, owner: Object, pod: Object) -> None:
        for found in self._claims_of(owner, rules.ordinal_of(pod)):
            if claims.has_other_controller(found, owner, pod):
                message = (
                    f"PersistentVolumeClaim {name_of(found)} has a conflicting OwnerReference that acts as a manging "
                    "controller, the retention policy is ignored for this claim"
                )
                self._event(owner, "Warning", "ConflictingController", message)
            wanted = claims.corrected_owners(found, owner, pod, in_range=_in_range(owner, pod))
            if wanted is not None:
                changed = replace_in(found, ("metadata", "ownerReferences"), wanted)
                await self._ctx.client.update(PERSISTENTVOLUMECLAIMS, changed)

    # Tell

    def _event(self, owner: Object, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self._ctx.recorder.event(owner, kind, reason, message)

    def _tell(self, owner: Object, verb: str, pod: Object) -> None:
        message = f"{verb} Pod {name_of(pod)} in StatefulSet {name_of(owner)} successful"
        self._event(owner, "Normal", f"Successful{verb}", message)

    def _tell_failure(self, owner: Object, verb: str, pod: Object, error: Exception) -> None:
        message = f"{verb} Pod {name_of(pod)} in StatefulSet {name_of(owner)} failed error: {error}"
        self._event(owner, "Warning", f"Failed{verb}", message)


def _in_range(owner: Object, pod: Object) -> bool:
    return rules.ordinal_of(pod) in rules.ordinals_of(owner)


def _prefixed(what: str, error: StatusError) -> StatusError:
    return StatusError(error.code, error.reason, f"{what}: {error}", details=error.details)


def _is_not_worth_telling(error: StatusError) -> bool:
    return error.reason == "AlreadyExists" or has_cause(error, NAMESPACE_TERMINATING)


STATEFULSET_CONTROLLER = Controller("statefulset-controller", StatefulSets)
