"""Deployments: a ReplicaSet for each template, and the steps from the old ones to the new one.

What to do is decided in rollout.py; here it is done, one step a pass: each step changes a ReplicaSet, whose change
brings the Deployment back here. Status and revision are written once, at the end of a pass.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import DEPLOYMENTS, PODS, REPLICASETS
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    controller_reference,
    dig,
    find_condition,
    generation_of,
    is_controlled_by,
    is_deleting,
    is_pod_terminal,
    key_of,
    name_of,
    namespace_of,
    replace_in,
    uid_of,
)
from kone.apimachinery.selectors import from_label_selector
from kone.client.client import EventType, Informer, Objects
from kone.controllers import rollout
from kone.controllers.controller import (
    NAMESPACE_TERMINATING,
    Context,
    Controller,
    Reconciler,
    Result,
    Watch,
    for_members,
    for_object,
    has_cause,
    owner_key,
)
from kone.controllers.pod_control import NAME_MAX, claim, controlled_by, index_by_controller, orphans_in
from kone.controllers.pod_template import HASH_LABEL, compute_hash, equal_ignoring_hash

log = logging.getLogger(__name__)


class Deployments(Reconciler):
    """Reconciles Deployments."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(DEPLOYMENTS)
        self._replica_sets: Informer = ctx.client.informer(REPLICASETS)
        self._pods: Informer = ctx.client.informer(PODS)
        index_by_controller(self._replica_sets)
        index_by_controller(self._pods)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._replica_sets, for_members(self.primary, "Deployment"))
        yield Watch(self._pods, self._keys_of_pod)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        """Recreate waits until the last old pod has gone."""
        if event != "DELETED" or (set_key := owner_key(self._replica_sets, "ReplicaSet", pod)) is None:
            return
        rs = self._replica_sets.get(*set_key)
        key = owner_key(self.primary, "Deployment", rs) if rs is not None else None
        deployment = self.primary.get(*key) if key is not None else None
        if key is not None and deployment is not None and not rollout.is_rolling(deployment):
            yield key

    async def reconcile(self, key: Key) -> Result | None:
        stored = self.primary.get(*key)
        if stored is None:
            return None
        if dig(stored, "spec", "selector") == {}:
            await self._refuse_selecting_all(stored)
            return None
        selector = from_label_selector(stored["spec"]["selector"])
        candidates = [*controlled_by(self._replica_sets, stored), *orphans_in(self._replica_sets, key.namespace)]
        owned = await claim(self._ctx.client, REPLICASETS, DEPLOYMENTS, stored, candidates, selector)
        new, old = rollout.split(stored, owned)
        if is_deleting(stored):
            return await self._finish(stored, stored, new, old, rolling_out=False)

        deployment = self._with_pause(stored)
        deployment, new = await self._follow_new_set(deployment, new, old)
        everything = [*old, *([new] if new is not None else [])]
        if dig(deployment, "spec", "paused") or rollout.is_scaling(deployment, everything):
            new, old = await self._scale(deployment, new, old, rollout.plan_scaling(deployment, new, old))
            if dig(deployment, "spec", "paused"):
                await self._clean_up(deployment, old)
            return await self._finish(stored, deployment, new, old, rolling_out=False)

        if rollout.is_rolling(deployment):
            deployment, new, old = await self._roll(deployment, new, old)
        else:
            deployment, new, old = await self._recreate(deployment, new, old)
        return await self._finish(stored, deployment, new, old, rolling_out=True)

    # Strategies: each pass takes the first step that can be taken

    async def _roll(
        self, deployment: Object, new: Object | None, old: Objects
    ) -> tuple[Object, Object | None, Objects]:
        if new is None:
            deployment, new = await self._create_new_set(deployment, old)
        for plan in (rollout.plan_up, rollout.plan_down):
            if steps := plan(deployment, new, old):
                moved, old = await self._scale(deployment, new, old, steps)
                return deployment, moved, old
        if rollout.is_complete(deployment, deployment.get("status") or {}):
            await self._clean_up(deployment, old)
        return deployment, new, old

    async def _recreate(
        self, deployment: Object, new: Object | None, old: Objects
    ) -> tuple[Object, Object | None, Objects]:
        if steps := [rollout.Scale(name_of(rs), 0) for rs in rollout.active(old)]:
            new, old = await self._scale(deployment, new, old, steps)
            return deployment, new, old
        if rollout.counted(old, "replicas") > 0 or self._has_running_pods(old):
            return deployment, new, old
        if new is None:
            deployment, new = await self._create_new_set(deployment, old)
        steps = [rollout.Scale(name_of(new), rollout.desired(deployment))]
        moved, old = await self._scale(deployment, new, old, steps)
        if rollout.is_complete(deployment, deployment.get("status") or {}):
            await self._clean_up(deployment, old)
        return deployment, moved, old

    def _has_running_pods(self, replica_sets: Iterable[Object]) -> bool:
        return any(not is_pod_terminal(pod) for rs in replica_sets for pod in controlled_by(self._pods, rs))

    # ReplicaSets

    async def _follow_new_set(
        self, deployment: Object, new: Object | None, old: Sequence[Object]
    ) -> tuple[Object, Object | None]:
        """Give the new set the Deployment's annotations and the highest revision, and the Deployment that revision."""
        if new is None:
            return deployment, None
        annotations = rollout.set_annotations(deployment, new, rollout.max_revision(old) + 1, exists=True)
        min_ready_s = dig(deployment, "spec", "minReadySeconds", default=0)
        if annotations != annotations_of(new) or min_ready_s != dig(new, "spec", "minReadySeconds", default=0):
            changed = replace_in(new, ("metadata", "annotations"), annotations)
            new = await self._ctx.client.update(
                REPLICASETS, replace_in(changed, ("spec", "minReadySeconds"), min_ready_s)
            )
        deployment = _with_revision(deployment, annotations_of(new).get(rollout.REVISION, ""))
        if rollout.has_deadline(deployment) and find_condition(deployment, "Progressing") is None:
            message = f'Found new replica set "{name_of(new)}"'
            deployment = self._with_progressing(deployment, "True", "FoundNewReplicaSet", message)
        return deployment, new

    async def _create_new_set(self, deployment: Object, old: Sequence[Object]) -> tuple[Object, Object]:
        new_revision = rollout.max_revision(old) + 1
        wanted = new_replica_set(deployment, old, new_revision)
        name, client = name_of(wanted), self._ctx.client
        try:
            new = await client.create(REPLICASETS, wanted, namespace=namespace_of(deployment))
        except StatusError as error:
            if error.reason == "AlreadyExists":
                new = await self._settle_collision(deployment, name, error)
                return _with_revision(deployment, str(new_revision)), new
            if not has_cause(error, NAMESPACE_TERMINATING):
                message = f'Failed to create new replica set "{name}": {error}'
                self._ctx.recorder.event(deployment, "Warning", "ReplicaSetCreateError", message)
                if rollout.has_deadline(deployment):
                    failed = self._with_progressing(deployment, "False", "ReplicaSetCreateError", message)
                    await self._write_status(failed)
            raise
        if (replicas := rollout.size(new)) > 0:
            self._tell_scaled(deployment, name, 0, replicas)
        deployment = _with_revision(deployment, str(new_revision))
        if rollout.has_deadline(deployment):
            message = f'Created new replica set "{name}"'
            deployment = self._with_progressing(deployment, "True", "NewReplicaSetCreated", message)
        return deployment, new

    async def _settle_collision(self, deployment: Object, name: str, error: StatusError) -> Object:
        """A set of that name is there. Ours, with our template: take it. Else count a collision, so that the next hash
        is another, and raise `error` to come back."""
        found = await self._ctx.client.get(REPLICASETS, name, namespace_of(deployment))
        if is_controlled_by(found, deployment) and equal_ignoring_hash(
            found["spec"]["template"], deployment["spec"]["template"]
        ):
            return found
        collisions = int(dig(deployment, "status", "collisionCount", default=0)) + 1
        await self._write_status(replace_in(deployment, ("status", "collisionCount"), collisions))
        log.info("hash collision: deployment=%s replicaset=%s collisions=%d", key_of(deployment), name, collisions)
        raise error

    async def _scale(
        self, deployment: Object, new: Object | None, old: Objects, steps: Iterable[rollout.Scale]
    ) -> tuple[Object | None, Objects]:
        """Take the steps; return the sets as they are then."""
        sets = {name_of(rs): rs for rs in [*old, *([new] if new is not None else [])]}
        share = rollout.share(deployment)
        for step in steps:
            rs = sets[step.name]
            before = rollout.size(rs)
            annotations = {**annotations_of(rs), **share}
            if before == step.replicas and not (step.always and annotations != annotations_of(rs)):
                continue
            scaled = replace_in(rs, ("spec", "replicas"), step.replicas)
            scaled = replace_in(scaled, ("metadata", "annotations"), annotations)
            sets[step.name] = await self._ctx.client.update(REPLICASETS, scaled)
            if before != step.replicas:
                self._tell_scaled(deployment, step.name, before, step.replicas)
        return (sets[name_of(new)] if new is not None else None), [sets[name_of(rs)] for rs in old]

    def _tell_scaled(self, deployment: Object, name: str, before: int, after: int) -> None:
        direction = "up" if before < after else "down"
        message = f"Scaled {direction} replica set {name} from {before} to {after}"
        self._ctx.recorder.event(deployment, "Normal", "ScalingReplicaSet", message)

    async def _clean_up(self, deployment: Object, old: Iterable[Object]) -> None:
        for rs in rollout.plan_history(deployment, old):
            try:
                await self._ctx.client.delete(REPLICASETS, name_of(rs), namespace=namespace_of(rs), uid=uid_of(rs))
            except StatusError as error:
                if error.code != 404:
                    raise

    # Status

    def _with_progressing(self, deployment: Object, status: str, reason: str, message: str) -> Object:
        return rollout.set_condition(deployment, "Progressing", status, reason, message, self._ctx.clock.now())

    def _with_pause(self, deployment: Object) -> Object:
        """While paused, lack of progress is not counted; a timeout that was told already stays told."""
        condition = find_condition(deployment, "Progressing") or {}
        if not rollout.has_deadline(deployment) or condition.get("reason") == rollout.TIMED_OUT:
            return deployment
        paused, was_paused = bool(dig(deployment, "spec", "paused")), condition.get("reason") == "DeploymentPaused"
        if paused and not was_paused:
            return self._with_progressing(deployment, "Unknown", "DeploymentPaused", "Deployment is paused")
        if was_paused and not paused:
            return self._with_progressing(deployment, "Unknown", "DeploymentResumed", "Deployment is resumed")
        return deployment

    async def _finish(
        self, stored: Object, deployment: Object, new: Object | None, old: Objects, *, rolling_out: bool
    ) -> Result | None:
        now = self._ctx.clock.now()
        before = deployment.get("status") or {}
        deployment = rollout.with_counts(deployment, new, old, now)
        if rolling_out:
            deployment = rollout.with_progress(deployment, before, new, old, now)
        if deployment["status"] != (stored.get("status") or {}) or annotations_of(deployment) != annotations_of(stored):
            await self._write_status(deployment)
            return None
        wait_s = rollout.deadline_in_s(deployment, now) if rolling_out else None
        return None if wait_s is None else Result(after_s=wait_s)

    async def _write_status(self, deployment: Object) -> None:
        """Also writes the revision: a Deployment's annotations go with its status."""
        await self._ctx.client.update(DEPLOYMENTS, deployment, subresource="status")

    async def _refuse_selecting_all(self, deployment: Object) -> None:
        message = "This deployment is selecting all pods. A non-empty selector is required."
        self._ctx.recorder.event(deployment, "Warning", "SelectingAll", message)
        generation = generation_of(deployment)
        if dig(deployment, "status", "observedGeneration", default=0) < generation:
            await self._write_status(replace_in(deployment, ("status", "observedGeneration"), generation))


def new_replica_set(deployment: Object, old: Sequence[Object], revision: int) -> Object:
    """The set for the Deployment's template: named and labelled by its hash, of the size it may start with."""
    template = deployment["spec"]["template"]
    digest = compute_hash(template, dig(deployment, "status", "collisionCount"))
    labels = {**(dig(template, "metadata", "labels", default={})), HASH_LABEL: digest}
    match_labels = {**(dig(deployment, "spec", "selector", "matchLabels", default={})), HASH_LABEL: digest}
    spec = {
        "replicas": rollout.new_set_size(deployment, old, 0),
        "selector": {**deployment["spec"]["selector"], "matchLabels": match_labels},
        "template": replace_in(template, ("metadata", "labels"), labels),
    }
    if min_ready_s := dig(deployment, "spec", "minReadySeconds", default=0):
        spec["minReadySeconds"] = min_ready_s
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{name_of(deployment)[: NAME_MAX - 1 - len(digest)]}-{digest}",
            "namespace": namespace_of(deployment),
            "labels": labels,
            "annotations": rollout.set_annotations(deployment, {}, revision, exists=False),
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": spec,
    }


def _with_revision(deployment: Object, revision: str) -> Object:
    if annotations_of(deployment).get(rollout.REVISION) == revision:
        return deployment
    return replace_in(deployment, ("metadata", "annotations", rollout.REVISION), revision)


DEPLOYMENT_CONTROLLER = Controller("deployment-controller", Deployments)
