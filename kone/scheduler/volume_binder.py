"""Carries out what VolumeBinding has planned: tells the API which volume a claim gets, or on which node one is to be
made, and waits until the volume controller has bound them all."""

from __future__ import annotations

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS
from kone.apimachinery.objects import Object, annotations_of, dig, name_of, namespace_of, uid_of
from kone.apimachinery.volume_claims import (
    BOUND_BY_CONTROLLER,
    SELECTED_NODE,
    is_bound_to,
    is_fully_bound,
    is_reachable,
)
from kone.client.client import Client
from kone.scheduler.awaiting import Awaiting
from kone.scheduler.framework import Status, unschedulable
from kone.scheduler.plugins.volume_binding import VolumePlan, with_node
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo


class VolumesNotBound(Exception):
    """The plan did not come true: the pod is to be scheduled anew."""


class VolumeBinder:
    """`bind` is VolumeBinding's deed; `changed` is to be called when a claim or a volume changes or a pod goes."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._awaiting = Awaiting(clock)

    def changed(self) -> None:
        self._awaiting.changed()

    async def bind(self, pod: PodInfo, node: NodeInfo, plan: VolumePlan, timeout_s: float) -> Status | None:
        """Carry the plan out. None: every claim is bound."""
        try:
            await self._tell(node, plan)
            await self._wait(pod, node, plan, timeout_s)
        except (StatusError, OSError) as error:
            return unschedulable(str(error))
        except VolumesNotBound as error:
            return unschedulable(f"binding volumes: {error}")
        return None

    async def _tell(self, node: NodeInfo, plan: VolumePlan) -> None:
        for volume, claim in plan.matches:
            if (promised := _promise(volume, claim)) is not volume:
                await self._client.update(PERSISTENTVOLUMES, promised)
        for claim in plan.to_provision:
            if annotations_of(claim).get(SELECTED_NODE) != node.name:
                await self._client.update(PERSISTENTVOLUMECLAIMS, with_node(claim, node.name))

    async def _wait(self, pod: PodInfo, node: NodeInfo, plan: VolumePlan, timeout_s: float) -> None:
        if not await self._awaiting.until(lambda: self._is_done(pod, node, plan), timeout_s):
            raise VolumesNotBound("context deadline exceeded")

    def _is_done(self, pod: PodInfo, node: NodeInfo, plan: VolumePlan) -> bool:
        """Whether every claim of the plan is bound; raises VolumesNotBound where one cannot be any more."""
        live = self._client.informer(PODS).get(pod.namespace, pod.name)
        if live is None or uid_of(live) != pod.uid:
            raise VolumesNotBound(f'pod does not exist any more: pod "{pod.name}" not found')
        done = True
        for planned, claim in plan.matches:
            volume = self._client.informer(PERSISTENTVOLUMES).get("", name_of(planned))
            if volume is None:
                raise VolumesNotBound(
                    f'failed to check binding: could not find v1.PersistentVolume "{name_of(planned)}"'
                )
            if not dig(volume, "spec", "claimRef", "uid"):
                raise VolumesNotBound(f'ClaimRef got reset for pv "{name_of(volume)}"')
            self._check_reach(volume, node)
            done = is_fully_bound(self._claim(claim, "binding")) and done
        for planned in plan.to_provision:
            claim = self._claim(planned, "provisioning pvc")
            if annotations_of(claim).get(SELECTED_NODE) != node.name:
                raise VolumesNotBound(f'provisioning failed for PVC "{name_of(claim)}"')
            volume = self._client.informer(PERSISTENTVOLUMES).get("", dig(claim, "spec", "volumeName", default=""))
            if volume is not None:
                self._check_reach(volume, node)
            done = is_fully_bound(claim) and done
        return done

    def _claim(self, planned: Object, doing: str) -> Object:
        namespace, name = namespace_of(planned), name_of(planned)
        claim = self._client.informer(PERSISTENTVOLUMECLAIMS).get(namespace, name)
        if claim is None:
            raise VolumesNotBound(
                f'failed to check {doing}: could not find v1.PersistentVolumeClaim "{namespace}/{name}"'
            )
        return claim

    def _check_reach(self, volume: Object, node: NodeInfo) -> None:
        if node.node is not None and not is_reachable(volume, node.node):
            raise VolumesNotBound(
                f'pv "{name_of(volume)}" node affinity doesn\'t match node "{node.name}": no matching NodeSelectorTerms'
            )


def _promise(volume: Object, claim: Object) -> Object:
    """The volume with a reference to the claim; the same object where it has one already."""
    ref = dig(volume, "spec", "claimRef") or {}
    if is_bound_to(volume, claim) and ref.get("uid"):
        return volume
    annotations = annotations_of(volume)
    if not is_bound_to(volume, claim):
        annotations = {**annotations, BOUND_BY_CONTROLLER: "yes"}
    reference = {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": namespace_of(claim),
        "name": name_of(claim),
        "uid": uid_of(claim),
        "resourceVersion": claim["metadata"].get("resourceVersion", ""),
    }
    metadata = {**volume["metadata"], **({"annotations": annotations} if annotations else {})}
    return {**volume, "metadata": metadata, "spec": {**volume["spec"], "claimRef": reference}}
