"""The Client over HTTPS, with a kubeconfig: what a kone agent, and every program beside the API server, is given.

async with HttpClient(load_kubeconfig(path)) as client:
    pods = await client.list(PODS, "default")
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import orjson

from kone.aio.clock import Clock, SystemClock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Key, Object, dig, key_of, name_of, namespace_of, resource_version_of, uid_of
from kone.apimachinery.selectors import parse_field_selector
from kone.client.client import Objects, PatchKind, Propagation
from kone.client.informer import WatchedView
from kone.client.kubeconfig import Connection

PAGE = 500
CONNECT_S, ANSWER_S = 10.0, 60.0
WATCH_S = (300, 600)  # a watch is asked for so long, at random, so that not all end at once
_PATCHES: Mapping[PatchKind, str] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}


class HttpClient:
    """A Client over HTTPS. What cannot be reached raises ConnectionError, or TimeoutError (both OSError)."""

    def __init__(self, connection: Connection, *, clock: Clock | None = None, user_agent: str = "kone") -> None:
        self._connection = connection
        self._clock = clock or SystemClock()
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._informers: dict[tuple[GVR, str], WatchedView] = {}
        self._tasks = TaskGroup("http-client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the informers and the connections."""
        await self._tasks.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    # Reading

    async def get(self, resource: GVR, name: str, namespace: str = "", *, subresource: str = "") -> Object:
        return await self._ask("GET", _path(resource, namespace, name, subresource))

    async def list(self, resource: GVR, namespace: str = "", *, labels: str = "", fields: str = "") -> Objects:
        objects, _ = await self.list_at(resource, namespace, labels=labels, fields=fields)
        return objects

    async def list_at(
        self, resource: GVR, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> tuple[Objects, str]:
        """(the objects, the revision that they are of), asked for in pages of 500."""
        objects: Objects = []
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields, "continue": ""}
        while True:
            page = await self._ask("GET", _path(resource, namespace), query=query)
            kind = str(page.get("kind", "")).removesuffix("List")
            named = {"apiVersion": page.get("apiVersion"), "kind": kind}
            objects += [{**named, **item} for item in page.get("items") or ()]
            query["continue"] = dig(page, "metadata", "continue", default="")
            if not query["continue"]:
                return objects, resource_version_of(page)

    def informer(self, resource: GVR, *, fields: str = "") -> WatchedView:
        found = self._informers.get((resource, fields))
        if found is None:
            name = f"{resource.group_resource} {fields}".strip()
            found = WatchedView(name, _Source(self, resource, fields), self._clock)
            self._informers[resource, fields] = found
            self._tasks.guard(found.run, name=f"informer {name}")
        return found

    async def watch(self, resource: GVR, after: str, *, fields: str = "") -> AsyncIterator[tuple[str, Object]]:
        """Events (type, object) after the revision, bookmarks among them, until the server ends the watch."""
        lasts_s = random.randint(*WATCH_S)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": after,
            "timeoutSeconds": str(lasts_s),
            "fieldSelector": fields,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=lasts_s + 30.0)
        try:
            async with self._request("GET", _path(resource), query=query, timeout=timeout) as response:
                await _refuse(response)
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            event = orjson.loads(line)
                            yield event["type"], event["object"]
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{self._connection.server}: {error}") from error

    # Writing

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object:
        where = namespace or namespace_of(obj)
        path = _path(resource, where, name or name_of(obj), subresource) if subresource else _path(resource, where)
        made = await self._ask("POST", path, body=obj)
        if not subresource:
            await self._see(resource, made)
        return made

    async def update(self, resource: GVR, obj: Object, *, subresource: str = "") -> Object:
        path = _path(resource, namespace_of(obj), name_of(obj), subresource)
        made = await self._ask("PUT", path, body=obj)
        await self._see(resource, made, subresource)
        return made

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
        path = _path(resource, namespace, name, subresource)
        made = await self._ask("PATCH", path, body=patch, content_type=_PATCHES[kind])
        await self._see(resource, made, subresource)
        return made

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
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if preconditions := {key: value for key, value in preconditions.items() if value}:
            options["preconditions"] = preconditions
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if propagation:
            options["propagationPolicy"] = propagation
        answer = await self._ask("DELETE", _path(resource, namespace, name), body=options)
        gone = dig(answer, "details", "uid", default="") if answer.get("kind") == "Status" else uid_of(answer)
        await self._see_deletion(resource, Key(namespace, name), gone)

    async def delete_collection(
        self,
        resource: GVR,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        propagation: Propagation = "",
    ) -> None:
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if propagation:
            options["propagationPolicy"] = propagation
        query = {"labelSelector": labels, "fieldSelector": fields}
        await self._ask("DELETE", _path(resource, namespace), query=query, body=options)

    # Reading one's own writes

    async def _see(self, resource: GVR, made: Object, subresource: str = "") -> None:
        """Wait until this client's informers show what was written."""
        if subresource not in ("", "status") or not resource_version_of(made):
            return
        await self._wait(resource, lambda view, fields: _shows(view, fields, made))

    async def _see_deletion(self, resource: GVR, key: Key, uid: str) -> None:
        def shown(view: WatchedView, fields: str) -> bool:
            now = view.get(*key)
            return now is None or (bool(uid) and uid_of(now) != uid) or bool(dig(now, "metadata", "deletionTimestamp"))

        await self._wait(resource, shown)

    async def _wait(self, resource: GVR, shown: Callable[[WatchedView, str], bool]) -> None:
        for (watched, fields), view in list(self._informers.items()):
            if watched == resource:
                await view.see(lambda view=view, fields=fields: shown(view, fields))  # type: ignore[misc]

    # HTTP

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": content_type} if data is not None else {}
        try:
            async with self._request(
                method, path, query=query or {}, timeout=timeout, data=data, headers=headers
            ) as response:
                await _refuse(response)
                answer: Object = orjson.loads(await response.read())
                return answer
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{self._connection.server}: {error}") from error

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={"Accept": "application/json", "User-Agent": self._user_agent},
                connector=aiohttp.TCPConnector(ssl=self._connection.ssl_context(), limit=0),
            )
        more = dict(headers or {})
        if token := self._token():
            more["Authorization"] = f"Bearer {token}"
        return self._session.request(
            method,
            self._connection.server + path,
            params={key: value for key, value in query.items() if value},
            data=data,
            headers=more,
            timeout=timeout,
            server_hostname=self._connection.tls_server_name or None,
        )

    def _token(self) -> str:
        """A token file is read at each request: it is replaced before it expires."""
        if self._connection.token_file:
            return Path(self._connection.token_file).read_text().strip()
        return self._connection.token


class _Source:
    """informer.Source on a client."""

    def __init__(self, client: HttpClient, resource: GVR, fields: str) -> None:
        self._client, self._resource, self._fields = client, resource, fields

    async def list(self) -> tuple[Objects, str]:
        return await self._client.list_at(self._resource, fields=self._fields)

    def watch(self, after: str) -> AsyncIterator[tuple[str, Object]]:
        return self._client.watch(self._resource, after, fields=self._fields)


class _Fields(dict[str, str]):
    """Fields of an object by their path."""

    def __init__(self, obj: Object) -> None:
        super().__init__()
        self._obj = obj

    def __missing__(self, path: str) -> str:
        return str(dig(self._obj, *path.split("."), default=""))

    def get(self, path: str, default: Any = "") -> Any:
        return self[path]


def _shows(view: WatchedView, fields: str, made: Object) -> bool:
    """Whether the view is as new as the write: it has that state or a newer one, or rightly has it not."""
    version, now = int(resource_version_of(made)), view.get(*key_of(made))
    if view.revision >= version:
        return True
    if not parse_field_selector(fields).matches(_Fields(made)):
        return now is None
    return now is not None and int(resource_version_of(now)) >= version


def _path(resource: GVR, namespace: str = "", name: str = "", subresource: str = "") -> str:
    parts = ["/apis", resource.group] if resource.group else ["/api"]
    parts.append(resource.version)
    if namespace and resource.resource != "namespaces":
        parts += ["namespaces", quote(namespace)]
    parts.append(resource.resource)
    parts += [quote(part) for part in (name, subresource) if part]
    return "/".join(parts)


async def _refuse(response: aiohttp.ClientResponse) -> None:
    """Raise the StatusError that an answer of 400 and above stands for."""
    if response.status < 400:
        return
    body = await response.read()
    try:
        status = orjson.loads(body)
    except ValueError:
        status = {}
    if not isinstance(status, dict) or status.get("kind") != "Status":
        text = body.decode(errors="replace").strip()
        raise StatusError(response.status, "", text or f"the server answered {response.status}")
    raise StatusError.from_status(status)
