"""What a controller is, and the loop that runs it: events become keys, a key is reconciled by one worker at a time.

A controller is a record; its reconciler looks at the world through informers and makes it right for one key, whatever
event brought the key. A reconciler that raises has its key backed off (5 ms doubling to 1000 s) and says so; the other
keys and the other controllers go on.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.aio.workqueue import BACKOFF_FIRST_S, BACKOFF_MAX_S, WorkQueue
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import (
    Key,
    Object,
    controller_of,
    dig,
    is_deleting,
    key_of,
    labels_of,
    namespace_of,
    uid_of,
)
from kone.apimachinery.selectors import LabelSelector, from_label_selector
from kone.client.client import Client, EventType, Informer, Unsubscribe
from kone.client.events import EventRecorder

log = logging.getLogger(__name__)

NAMESPACE_TERMINATING = "NamespaceTerminating"  # cause of the 403 for a create in a namespace that is being deleted


class NotYet(Exception):
    """The world is not ready for this key, and no event will say when it is: look again after a back-off."""


@dataclass(frozen=True, slots=True)
class Result:
    """Look at the key again in `after_s`, should nothing else bring it earlier."""

    after_s: float


KeysOf = Callable[[EventType, Object, Object | None], Iterable[Key]]


@dataclass(frozen=True, slots=True)
class Watch:
    """Events of an informer, and the keys they concern."""

    informer: Informer
    keys: KeysOf


class Reconciler(ABC):
    """The moving part of a controller."""

    primary: Informer
    """Where the object that a key names is found."""

    @abstractmethod
    def watches(self) -> Iterable[Watch]: ...

    @abstractmethod
    async def reconcile(self, key: Key) -> Result | None:
        """Make the world right for the key. Raises to be called again after a back-off."""

    def subject(self, key: Key) -> Object | None:
        """The object that a key names, to tell its users of a failure."""
        return self.primary.get(*key)

    def started(self) -> Iterable[Key]:
        """Called once, when the informers are synced and before the first event: keys that no event would bring."""
        return ()

    def loops(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """What must run beside the workers, by name."""
        return {}


async def _no_such_path(path: str, query: Mapping[str, str]) -> Object:
    raise StatusError(404, "NotFound", "the server could not find the requested resource")


async def _no_signer(request_pem: bytes, usages: Sequence[str], not_before: float, not_after: float) -> str:
    raise ValueError("this cluster has no signer")


@dataclass(frozen=True, slots=True)
class Settings:
    """What controllers must know of the cluster."""

    ca_pem: str = ""
    """The certificate authority of the API server, for kube-root-ca.crt."""
    namespaced_resources: Callable[[], Sequence[GVR]] = tuple
    """Every namespaced resource that can be listed and deleted, in its preferred version."""
    collectable_resources: Callable[[], Sequence[GVR]] = tuple
    """Every resource that can be listed, watched and deleted: what the garbage collector looks after."""
    resource_of_kind: Callable[[str, str], tuple[GVR, bool] | None] = lambda api_version, kind: None
    """(resource, namespaced) of an owner reference's apiVersion and kind; None where the API has no such kind."""
    get_path: Callable[[str, Mapping[str, str]], Awaitable[Object]] = _no_such_path
    """GET of a path and query below the API, aggregated APIs included. Raises StatusError."""
    sign_request: Callable[[bytes, Sequence[str], float, float], Awaitable[str]] = _no_signer
    """The certificate for a PEM request, its usages, not before and not after. Raises ValueError, OSError."""
    local_storage: str = ""
    """The directory in which volumes of the class local-path are made; "" where this process has no node."""
    node_name: str = ""
    """The node of this process; "" where it has none."""
    policy_warnings: Callable[[Object], list[Object]] = lambda policy: []
    """What the expressions of a ValidatingAdmissionPolicy get wrong of the kinds that it is for."""
    service_cidrs: Sequence[str] = ()
    """The ranges of Services that the flags say, that of the default family first."""
    sign_account_token: Callable[[Object, Object], str] = lambda account, secret: ""
    """The lasting token of a service account for a secret."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a reconciler is given."""

    client: Client
    recorder: EventRecorder
    clock: Clock
    queue: WorkQueue[Key]
    settings: Settings


@dataclass(frozen=True, slots=True)
class Controller:
    """`name` as `--controllers` of kube-controller-manager names it; `account` is the service account in kube-system
    whose rights it has; `component` signs its events."""

    name: str
    make: Callable[[Context], Reconciler]
    account: str = ""
    component: str = ""
    workers: int = 5
    backoff_s: float = BACKOFF_FIRST_S
    """How long a key that failed waits; doubled at each further failure, up to the next."""
    backoff_max_s: float = BACKOFF_MAX_S


# From an event to keys: for the object itself, for its owner, or a map of the controller's own.


def for_object(kind: EventType, obj: Object, previous: Object | None) -> Iterable[Key]:
    return (key_of(obj),)


def for_owner(owners: Informer, owner_kind: str) -> KeysOf:
    """The keys of the controllers (of that kind) that the object has and had."""

    def keys(kind: EventType, obj: Object, previous: Object | None) -> Iterable[Key]:
        found = {owner_key(owners, owner_kind, obj)}
        if previous is not None:
            found.add(owner_key(owners, owner_kind, previous))
        return (key for key in found if key is not None)

    return keys


def for_members(
    owners: Informer,
    owner_kind: str,
    selector: Callable[[Object], LabelSelector] = lambda owner: from_label_selector(dig(owner, "spec", "selector")),
) -> KeysOf:
    """The keys of the controllers that the object (a pod, a ReplicaSet) has and had; of an orphan's, those of all that
    could adopt it."""
    owned = for_owner(owners, owner_kind)

    def keys(kind: EventType, obj: Object, previous: Object | None) -> Iterable[Key]:
        yield from owned(kind, obj, previous)
        labels = labels_of(obj)
        if controller_of(obj) is None and labels and kind != "DELETED" and not is_deleting(obj):
            for owner in owners.list(namespace_of(obj)):
                wanted = selector(owner)
                if not wanted.empty and wanted.matches(labels):
                    yield key_of(owner)

    return keys


def owner_key(owners: Informer, owner_kind: str, obj: Object) -> Key | None:
    """The key of the object's controller, where that is of the kind, still there, and still the same object."""
    reference = controller_of(obj)
    if reference is None or reference.get("kind") != owner_kind:
        return None
    key = Key(namespace_of(obj), reference["name"])
    owner = owners.get(*key)
    return key if owner is not None and uid_of(owner) == reference.get("uid") else None


def has_cause(error: StatusError, reason: str) -> bool:
    """Whether the Status names that cause (apierrors.HasStatusCause)."""
    return any(cause.get("reason") == reason for cause in error.details.get("causes") or ())


class Loop:
    """A controller at work."""

    def __init__(
        self, controller: Controller, client: Client, recorder: EventRecorder, clock: Clock, settings: Settings
    ):
        self.controller = controller
        first_s, max_s = controller.backoff_s, controller.backoff_max_s
        self.queue: WorkQueue[Key] = WorkQueue(clock, name=controller.name, first_s=first_s, max_s=max_s)
        self._recorder = recorder
        self._reconciler = controller.make(Context(client, recorder, clock, self.queue, settings))
        self._tasks = TaskGroup(controller.name)
        self._subscriptions: list[Unsubscribe] = []

    async def start(self) -> None:
        """Return when the informers are synced and the workers run."""
        watches = list(self._reconciler.watches())
        for watch in watches:
            await watch.informer.wait_synced()
        for key in self._reconciler.started():
            self.queue.add(key)
        for watch in watches:
            self._subscriptions.append(watch.informer.subscribe(self._enqueueing(watch.keys)))
        for number in range(self.controller.workers):
            self._tasks.guard(self._work, name=f"{self.controller.name} worker {number}")
        for name, loop in self._reconciler.loops().items():
            self._tasks.guard(loop, name=f"{self.controller.name} {name}")

    async def stop(self) -> None:
        for unsubscribe in self._subscriptions:
            unsubscribe()
        self._subscriptions.clear()
        await self._tasks.cancel()
        self.queue.close()

    def _enqueueing(self, keys: KeysOf) -> Callable[[EventType, Object, Object | None], None]:
        def handler(kind: EventType, obj: Object, previous: Object | None) -> None:
            for key in keys(kind, obj, previous):
                self.queue.add(key)

        return handler

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self._reconcile(key)
            except asyncio.CancelledError:
                self.queue.add(key)  # for the worker that follows
                raise
            finally:
                self.queue.done(key)

    async def _reconcile(self, key: Key) -> None:
        name = self.controller.name
        try:
            result = await self._reconciler.reconcile(key)
        except StatusError as error:
            if has_cause(error, NAMESPACE_TERMINATING):
                self.queue.forget(key)
                return
            delay_s = self.queue.add_backing_off(key)
            # Gone or changed meanwhile: someone else was faster, and the next look starts from their state.
            level = logging.DEBUG if error.code in (404, 409) else logging.WARNING
            log.log(level, "reconcile refused: controller=%s key=%s again_in=%.3gs error=%s", name, key, delay_s, error)
        except OSError as error:
            delay_s = self.queue.add_backing_off(key)
            log.warning("no API: controller=%s key=%s again_in=%.3gs error=%s", name, key, delay_s, error)
        except NotYet as reason:
            delay_s = self.queue.add_backing_off(key)
            log.info("not yet: controller=%s key=%s again_in=%.3gs: %s", name, key, delay_s, reason)
        except Exception as error:
            delay_s = self.queue.add_backing_off(key)
            log.exception("reconcile failed: controller=%s key=%s again_in=%.3gs", name, key, delay_s)
            subject = self._reconciler.subject(key)
            if subject is not None:
                message = f"Controller {name} failed and will try again: {type(error).__name__}: {error}"
                self._recorder.event(subject, "Warning", "ReconcileFailed", message)
        else:
            self.queue.forget(key)
            if result is not None:
                self.queue.add_after(key, result.after_s)


class Manager:
    """All the controllers of a process, each under its own name and with its own queue."""

    def __init__(
        self,
        client_for: Callable[[str], Client],
        clock: Clock,
        settings: Settings,
        controllers: Iterable[Controller],
    ) -> None:
        """`client_for` gives the client that acts as the service account of that name in kube-system."""
        self._client_for, self._clock, self._settings = client_for, clock, settings
        self._controllers = list(controllers)
        self._loops: list[Loop] = []
        self._recorders: list[EventRecorder] = []

    async def start(self) -> None:
        """Return when every controller has its informers and runs."""
        for controller in self._controllers:
            client = self._client_for(controller.account or controller.name)
            recorder = EventRecorder(client, controller.component or controller.name, clock=self._clock)
            loop = Loop(controller, client, recorder, self._clock, self._settings)
            self._recorders.append(recorder)
            self._loops.append(loop)
            await loop.start()

    async def stop(self) -> None:
        """Stop the loops first, so that what they said last is still written."""
        for loop in self._loops:
            await loop.stop()
        for recorder in self._recorders:
            await recorder.stop()
        self._loops.clear()
        self._recorders.clear()

    @property
    def idle(self) -> bool:
        """Nothing to do in any queue; what waits for its time does not count."""
        return all(loop.queue.idle for loop in self._loops)
