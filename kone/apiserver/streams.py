"""logs, exec, attach and port-forward: the API server finds the pod's node and passes bytes and messages through.

exec, attach and port-forward are tunnels (tunnels.py): nothing in them is understood here. Checks:
kubernetes/pkg/registry/core/pod.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from kone.apimachinery.errors import (
    FieldError,
    StatusError,
    bad_request,
    forbidden_field,
    internal_error,
    invalid,
    invalid_value,
)
from kone.apimachinery.objects import Object, name_of, namespace_of
from kone.apimachinery.timestamps import parse_time
from kone.apiserver.connections import ends_with_client
from kone.apiserver.kubelet_client import KubeletClient, unreachable
from kone.apiserver.options import first, parse_bool, parse_int
from kone.apiserver.requests import Parameters
from kone.apiserver.tunnels import SPDY, dial, handshake, is_web_socket, splice, splice_spdy
from kone.auth.authentication import WEBSOCKET_TOKEN_PROTOCOL
from kone.registry.resource import Resource

log = logging.getLogger(__name__)

LOG_PROTOCOLS: Final = ("binary.k8s.io", "base64.binary.k8s.io")
# The API's names of the streams and the kubelet's.
_STREAM_FLAGS: Final = {"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"}


class Streams:
    """Relays between clients and kubelets."""

    def __init__(self, kubelets: KubeletClient) -> None:
        self._kubelets = kubelets

    async def logs(self, request: web.BaseRequest, pod: Object, query: Parameters) -> web.StreamResponse:
        """A container's log as text. 204 for a pod that no node has yet."""
        options = log_options(query)
        if errors := log_option_errors(options):
            raise invalid("PodLogOptions", name_of(pod), errors)
        container = container_of(pod, first(query, "container"))
        node = (pod.get("spec") or {}).get("nodeName", "")
        if not node:
            return web.Response(status=204)
        path = f"/containerLogs/{namespace_of(pod)}/{name_of(pod)}/{container}"
        url = self._kubelets.url(node, path).with_query(kubelet_log_query(options))
        try:
            answer = await self._kubelets.session.get(url)
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(error) from error
        async with answer:
            if answer.status != 200:
                raise backend_error(answer.status, await answer.text(), "pods/log", name_of(pod))
            with ends_with_client(request):
                if is_web_socket(request):
                    return await _text_messages(request, answer.content)
                return await _text(request, answer.content)

    async def container(
        self, request: web.BaseRequest, pod: Object, action: str, query: Parameters
    ) -> web.StreamResponse:
        """exec or attach (`action`)."""
        container = container_of(pod, first(query, "container"))
        node = self._node(pod)
        flags = [(theirs, "1") for ours, theirs in _STREAM_FLAGS.items() if parse_bool(first(query, ours, "0"))]
        commands = [("command", word) for word in query.get("command", ())]
        path = f"/{action}/{namespace_of(pod)}/{name_of(pod)}/{container}"
        url = self._kubelets.url(node, path).with_query([*flags, *commands])
        return await self._relay(request, url, f"pods/{action}", name_of(pod), "v4.channel.k8s.io")

    async def port_forward(self, request: web.BaseRequest, pod: Object, query: Parameters) -> web.StreamResponse:
        """Streams to ports of the pod."""
        path = f"/portForward/{namespace_of(pod)}/{name_of(pod)}"
        url = self._kubelets.url(self._node(pod), path)
        ports = query.get("ports", ())
        url = url.with_query([("port", ",".join(ports))] if ports else [])
        return await self._relay(request, url, "pods/portforward", name_of(pod), "portforward.k8s.io")

    def _node(self, pod: Object) -> str:
        node: str = (pod.get("spec") or {}).get("nodeName", "")
        if not node:
            raise bad_request(f"pod {name_of(pod)} does not have a host assigned")
        return node

    async def _relay(
        self, request: web.BaseRequest, url: URL, resource: str, name: str, spdy: str
    ) -> web.StreamResponse:
        """`spdy` is the stream protocol of clients that speak SPDY."""
        if is_web_socket(request):
            headers = web_socket_headers(request)
        elif request.headers.get("Upgrade", "").lower() == SPDY.lower():
            _check_protocol(request, spdy)
            headers = handshake(f"{SPDY}+{spdy}")
        else:
            raise bad_request("Upgrade request required")
        try:
            backend = await dial(url, tls=self._kubelets.tls, method="GET", headers=headers)
        except OSError as error:
            raise unreachable(error) from error
        try:
            if not backend.switched:
                raise backend_error(backend.status, (await backend.refusal()).decode(errors="replace"), resource, name)
            if is_web_socket(request):
                return await splice(request, backend)
            return await splice_spdy(request, backend, spdy)
        finally:
            await backend.close()


async def _text(request: web.BaseRequest, content: aiohttp.StreamReader) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain", "Cache-Control": "no-cache, private"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        async for data in content.iter_any():
            await response.write(data)
    return response


async def _text_messages(request: web.BaseRequest, content: aiohttp.StreamReader) -> web.StreamResponse:
    """The text in messages of a WebSocket: binary ones, or base64 in text for who asks so."""
    socket = web.WebSocketResponse(protocols=LOG_PROTOCOLS, compress=False)
    await socket.prepare(request)
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        async for data in content.iter_any():
            if socket.ws_protocol == "base64.binary.k8s.io":
                await socket.send_str(base64.b64encode(data).decode())
            else:
                await socket.send_bytes(data)
    await socket.close()
    return socket


def _check_protocol(request: web.BaseRequest, spdy: str) -> None:
    """Raises 403 where the client does not speak the one protocol that there is."""
    offered = [
        word.strip() for line in request.headers.getall("X-Stream-Protocol-Version", []) for word in line.split(",")
    ]
    if spdy not in offered:
        supports = f"client supports [{' '.join(offered)}], server accepts [{spdy}]"
        raise StatusError(403, "Forbidden", f"unable to upgrade: unable to negotiate protocol: {supports}")


def web_socket_headers(request: web.BaseRequest) -> CIMultiDict[str]:
    """The client's own handshake for the backend, without what authenticates the client to us."""
    headers = CIMultiDict({"Connection": "Upgrade", "Upgrade": "websocket"})
    for name in ("Sec-WebSocket-Key", "Sec-WebSocket-Version"):
        if name in request.headers:
            headers[name] = request.headers[name]
    offered = [
        word.strip()
        for line in request.headers.getall("Sec-WebSocket-Protocol", [])
        for word in line.split(",")
        if not word.strip().startswith(WEBSOCKET_TOKEN_PROTOCOL)
    ]
    if offered:
        headers["Sec-WebSocket-Protocol"] = ", ".join(offered)
    return headers


def container_of(pod: Object, name: str) -> str:
    """The container that a request means: the one it names, or the only one. Raises 400."""
    spec: Object = pod.get("spec") or {}
    containers: list[Object] = spec.get("containers") or []
    names = [
        str(c.get("name", ""))
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for c in spec.get(kind) or ()
    ]
    if name:
        if name not in names:
            raise bad_request(f"container {name} is not valid for pod {name_of(pod)}")
        return name
    if len(containers) == 1:
        return str(containers[0]["name"])
    choice = f", choose one of: [{' '.join(names)}]" if containers else ""
    raise bad_request(f"a container name must be specified for pod {name_of(pod)}{choice}")


def log_options(query: Parameters) -> Object:
    """PodLogOptions of a query, only what was given. Raises 400 for numbers that are none."""
    found: Object = {}
    for name in ("follow", "previous", "timestamps"):
        if name in query:
            found[name] = parse_bool(query[name][0])
    for name in ("sinceSeconds", "tailLines", "limitBytes"):
        if name in query:
            found[name] = parse_int(query[name][0])
    if "sinceTime" in query:
        try:
            parse_time(query["sinceTime"][0])
        except ValueError as error:
            raise bad_request(str(error)) from error
        found["sinceTime"] = query["sinceTime"][0]
    if "stream" in query:
        found["stream"] = query["stream"][0]
    return found


def log_option_errors(options: Mapping[str, object]) -> list[FieldError]:
    found: list[FieldError] = []
    tail, limit, since = options.get("tailLines"), options.get("limitBytes"), options.get("sinceSeconds")
    if isinstance(tail, int) and tail < 0:
        found.append(invalid_value("tailLines", tail, "must be greater than or equal to 0"))
    if isinstance(limit, int) and limit < 1:
        found.append(invalid_value("limitBytes", limit, "must be greater than 0"))
    if since is not None and "sinceTime" in options:
        why = "at most one of `sinceTime` or `sinceSeconds` may be specified"
        found.append(forbidden_field("[]", why))
    elif isinstance(since, int) and since < 1:
        found.append(invalid_value("sinceSeconds", since, "must be greater than 0"))
    if "stream" in options:  # PodLogsQuerySplitStreams is an alpha feature of 1.37, and off
        found.append(forbidden_field("stream", "may not be specified"))
    return found


def kubelet_log_query(options: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in options.items():
        if value is True:
            found[name] = "true"
        elif value is not False:
            found[name] = str(value)
    return found


def backend_error(code: int, text: str, resource: str, name: str) -> StatusError:
    """A kubelet's refusal, as the API server passes it on."""
    with contextlib.suppress(ValueError):
        status = json.loads(text)
        if isinstance(status, dict) and status.get("kind") == "Status":
            text = str(status.get("message") or text)
    text = text.strip()
    if code == 500:
        return internal_error(text)
    if code == 400:
        return bad_request(text)
    reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 503: "ServiceUnavailable"}
    message = {404: "the server could not find the requested resource"}.get(code, text)
    details: Object = {"name": name, "kind": resource}
    if text:
        details["causes"] = [{"reason": "UnexpectedServerResponse", "message": text}]
    return StatusError(code, reasons.get(code, ""), f"{message} ( {resource} {name})", details=details)


_OPTION_KINDS: Final = {"exec": "PodExecOptions", "attach": "PodAttachOptions", "portforward": "PodPortForwardOptions"}


def connect_options(resource: Resource, subresource: str, query: Parameters, path: Sequence[str]) -> Object:
    """What a connection is asked for with, as admission sees it: PodExecOptions, ServiceProxyOptions …"""
    kind = _OPTION_KINDS.get(subresource) or f"{resource.kind}ProxyOptions"
    options: Object = {"kind": kind, "apiVersion": "v1"}
    if subresource == "proxy":
        return {**options, "path": "/".join(path)} if path else options
    if subresource == "portforward":
        ports = [int(port) for text in query.get("ports", ()) for port in text.split(",") if port.isdigit()]
        return {**options, "ports": ports} if ports else options
    for flag in ("stdin", "stdout", "stderr", "tty"):
        if parse_bool(first(query, flag, "0")):
            options[flag] = True
    if first(query, "container"):
        options["container"] = first(query, "container")
    if subresource == "exec" and query.get("command"):
        options["command"] = list(query["command"])
    return options
