"""NetworkPolicies enforced: what the API says becomes the table's content (network_policy.py), as it changes.

A pod is isolated before its first container runs: the pod network tells its addresses (`wired`) and waits until the
table has them. A change is applied at once when nothing was for SYNC_INTERVAL_S, else with all that came in that time.
Only facts that policies look at wake anything, and without a policy there is no table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from kone.aio.clock import Clock, SystemClock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.kinds import NAMESPACES, NETWORKPOLICIES, PODS
from kone.apimachinery.objects import Object, labels_of, name_of, uid_of
from kone.client.client import EventType, Reader
from kone.net.network_policy import Labels, PodFacts, pod_facts, ruleset_of
from kone.net.nft_ruleset import Ruleset
from kone.net.nft_table import NftError, NftTable

log = logging.getLogger(__name__)

SYNC_INTERVAL_S = 0.05
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
WIRED_TIMEOUT_S = 5.0  # then the pod starts all the same: what stopped the table is in the log, and tried again


class PolicyEnforcer:
    """Keeps one table equal to what NetworkPolicies ask of this node."""

    def __init__(self, client: Reader, table: NftTable, node_name: str, clock: Clock | None = None) -> None:
        self._policies = client.informer(NETWORKPOLICIES)
        self._pods = client.informer(PODS)
        self._namespaces = client.informer(NAMESPACES)
        self._table = table
        self._node_name = node_name
        self._clock = clock or SystemClock()
        self._facts: dict[str, PodFacts] = {}  # by pod UID
        self._wired: dict[str, tuple[str, ...]] = {}  # addresses that a pod's status may not yet tell
        self._labels: dict[str, Labels] = {}  # of namespaces
        self._wake = asyncio.Event()
        self._hurry = False  # a pod waits
        self._asked = 0  # changes so far, and up to which the table has them
        self._held = 0
        self._progress = asyncio.Condition()
        self._tasks = TaskGroup("network-policy")
        self._unsubscribe: list[Callable[[], None]] = []
        self.last_sync_s = 0.0

    async def start(self) -> None:
        """Begin; what an earlier run left is in force until the informers are there."""
        await self._table.start()
        self._tasks.guard(self._run, name="network-policy")

    async def stop(self) -> None:
        """Let go; the table stays."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        await self._tasks.cancel()
        await self._table.stop()

    async def wired(self, pod_uid: str, ips: Sequence[str]) -> None:
        """A pod of this node has its addresses: return when they are judged by its policies."""
        self._wired[pod_uid] = tuple(ips)
        for pod in self._pods.list():
            if uid_of(pod) == pod_uid:
                self._look(pod)
        if self._policies.list():
            self._hurry = True
            await self.settled()

    def unwired(self, pod_uid: str) -> None:
        """The pod has no link any more."""
        self._wired.pop(pod_uid, None)
        if self._facts.pop(pod_uid, None) is not None:
            self._touch()

    async def settled(self) -> None:
        """Return when the table has all that was known when this was called, or 5 s later."""
        asked = self._asked
        if self._held >= asked:
            return
        try:
            async with asyncio.timeout(WIRED_TIMEOUT_S), self._progress:
                await self._progress.wait_for(lambda: self._held >= asked)
        except TimeoutError:
            log.error(
                "the table of NetworkPolicies lags by %.0f s: a pod starts before it is isolated", WIRED_TIMEOUT_S
            )

    async def _run(self) -> None:
        for informer in (self._policies, self._pods, self._namespaces):
            await informer.wait_synced()
        if not self._unsubscribe:
            self._unsubscribe = [
                self._namespaces.subscribe(self._namespace_changed),
                self._pods.subscribe(self._pod_changed),
                self._policies.subscribe(self._policy_changed),
            ]
        retry_s = RETRY_FIRST_S
        while True:
            began = self._clock.monotonic()
            if await self._sync():
                retry_s = RETRY_FIRST_S
            else:
                self._tasks.spawn(self._later(retry_s), name="network-policy-retry")
                retry_s = min(retry_s * 2, RETRY_MAX_S)
            self.last_sync_s = self._clock.monotonic() - began
            await self._wake.wait()
            if (left := began + SYNC_INTERVAL_S - self._clock.monotonic()) > 0 and not self._hurry:
                await self._clock.sleep(left)

    async def _sync(self) -> bool:
        self._wake.clear()
        self._hurry = False
        asked = self._asked
        policies, pods, labels = self._policies.list(), list(self._facts.values()), dict(self._labels)
        try:
            await self._table.hold(await self._compile(policies, pods, labels))
        except NftError as error:
            log.error("NetworkPolicies are not all enforced: %s", error)
            return False
        async with self._progress:
            self._held = asked
            self._progress.notify_all()
        return True

    @staticmethod
    async def _compile(policies: list[Object], pods: list[PodFacts], labels: Mapping[str, Labels]) -> Ruleset | None:
        """In a thread: a hundred policies of a hundred pods take some tens of milliseconds."""
        if not policies:
            return None
        return await asyncio.to_thread(ruleset_of, policies, pods, labels)

    async def _later(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._wake.set()

    def _touch(self) -> None:
        self._asked += 1
        self._wake.set()

    def _look(self, pod: Object) -> None:
        """Take a pod's facts in; wake when they are others than before."""
        uid = uid_of(pod)
        facts = pod_facts(pod, self._node_name, self._wired.get(uid, ()))
        if facts == self._facts.get(uid):
            return
        if facts is None:
            del self._facts[uid]
        else:
            self._facts[uid] = facts
        self._touch()

    def _pod_changed(self, kind: EventType, pod: Object, previous: Object | None) -> None:
        if kind != "DELETED":
            self._look(pod)
        elif uid_of(pod) not in self._wired:  # else its last process may still run: `unwired` follows
            self.unwired(uid_of(pod))

    def _namespace_changed(self, kind: EventType, namespace: Object, previous: Object | None) -> None:
        name, labels = name_of(namespace), labels_of(namespace)
        if kind == "DELETED":
            self._labels.pop(name, None)
        elif self._labels.get(name) == labels:
            return
        else:
            self._labels[name] = labels
        self._touch()

    def _policy_changed(self, kind: EventType, policy: Object, previous: Object | None) -> None:
        if previous is None or kind == "DELETED" or previous.get("spec") != policy.get("spec"):
            self._touch()
