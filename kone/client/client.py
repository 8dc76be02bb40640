"""What every loop is given: a Reader, a Writer, or both, whether the API server is in this process or behind HTTPS.

`apiserver/local_client.py` and `client/http_client.py` keep this contract; `tests/contracts/test_client.py` proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
PatchKind = Literal["merge", "strategic", "json"]
Propagation = Literal["", "Background", "Foreground", "Orphan"]

Handler = Callable[[EventType, Object, Object | None], None]
"""Called with (type, object, the state before it or None). It must not block, and must not raise."""

Objects = list[Object]  # a name of its own, since `list` is a method below
Unsubscribe = Callable[[], None]


class Informer(Protocol):
    """The current state of one resource, kept current by events; shared by all who ask for the same one.

    Its objects are read-only. In the API server's own process a write is visible here before it is answered; over
    HTTPS a little later. Of one object, every state is seen at most once, in the order of its resourceVersions.
    """

    @property
    def synced(self) -> bool:
        """Whether the first list is in."""

    async def wait_synced(self) -> None:
        """Return as soon as `synced`."""

    def get(self, namespace: str, name: str) -> Object | None:
        """The object, or None; the namespace of a cluster-scoped object is ""."""

    def list(self, namespace: str = "") -> Objects:
        """All objects of the namespace, or of all namespaces, sorted by namespace and name."""

    def subscribe(self, handler: Handler) -> Unsubscribe:
        """Call `handler` with ADDED for each object that is here, then at each change."""

    def add_index(self, name: str, keys: Callable[[Object], Iterable[str]]) -> None:
        """Keep an index by the strings that `keys` gives for an object; once a name, later calls change nothing."""

    def by_index(self, name: str, key: str) -> Objects:
        """The objects under that key of the index; KeyError where no such index was added."""


class Reader(Protocol):
    """Reading. Every method raises StatusError as the API answers it."""

    async def get(self, resource: GVR, name: str, namespace: str = "", *, subresource: str = "") -> Object:
        """The object; with the subresource "scale", its Scale."""

    async def list(self, resource: GVR, namespace: str = "", *, labels: str = "", fields: str = "") -> Objects:
        """The objects that match both selectors; namespace "" means all. Items carry apiVersion and kind."""

    def informer(self, resource: GVR, *, fields: str = "") -> Informer:
        """The shared informer of the resource, narrowed to a field selector ("spec.nodeName=n1")."""


class Writer(Protocol):
    """Writing. Every method raises StatusError as the API answers it; what is given is never changed.

    Read your writes: when a write returns, this client's informers show it. So a loop that looks at its informer again
    never acts on the world before its own last act, and needs no account of what it still expects to see.
    """

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object:
        """Create; return what was stored. With a subresource ("binding", "eviction"), `name` is its parent's."""

    async def update(self, resource: GVR, obj: Object, *, subresource: str = "") -> Object:
        """Replace the object; 409 Conflict when its metadata.resourceVersion is set and no longer the newest."""

    async def patch(
        self,
        resource: GVR,
        name: str,
        patch: Any,
        *,
        namespace: str = "",
        subresource: str = "",
        kind: PatchKind = "merge",
    ) -> Object:
        """Apply a merge patch or strategic merge patch (a dict), or a JSON patch (a list of operations)."""

    async def delete(
        self,
        resource: GVR,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_s: int | None = None,
        propagation: Propagation = "",
    ) -> None:
        """Delete; `uid` and `resource_version` are preconditions (409 Conflict), "" means none."""

    async def delete_collection(
        self,
        resource: GVR,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        propagation: Propagation = "",
    ) -> None:
        """Delete every object of the namespace that matches both selectors."""


class Client(Reader, Writer, Protocol):
    """Both: what a controller is given."""
