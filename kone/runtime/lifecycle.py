"""postStart and preStop handlers: what a container does just after its start and just before its stop.

Rules and texts: kubernetes/pkg/kubelet/lifecycle. An HTTP hook has succeeded when anything answers, whatever the
status; tcpSocket is in the API for old manifests only, and always fails.
"""

from __future__ import annotations

import json
import logging

from kone.aio.clock import Clock
from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object
from kone.client.events import EventRecorder
from kone.runtime.handlers import PLAIN_HTTP, Handlers, NoAnswer, resolve_port
from kone.runtime.parts import HookError
from kone.runtime.pod_spec import format_pod
from kone.runtime.runtime import RuntimeFault

log = logging.getLogger(__name__)

USER_AGENT = "kube-lifecycle/1.37"


class Hooks:
    """The HookRunner of parts.py. With a `recorder` it tells when an HTTPS hook was answered in plain HTTP."""

    def __init__(self, handlers: Handlers, clock: Clock, recorder: EventRecorder | None = None) -> None:
        self._handlers, self._clock, self._recorder = handlers, clock, recorder

    async def run(self, pod: Object, container: Object, container_id: str, handler: Object, pod_ip: str) -> None:
        where = f"for Container {go_quote(container['name'])} in Pod {go_quote(format_pod(pod))} failed - error"
        if (action := handler.get("exec")) is not None:
            await self._exec(container_id, action.get("command") or [], where)
        elif (action := handler.get("httpGet")) is not None:
            try:
                await self._http_get(pod, container, action, pod_ip)
            except (NoAnswer, ValueError) as error:
                raise HookError(f"HTTP lifecycle hook ({action.get('path', '')}) {where}: {error}") from None
        elif (action := handler.get("sleep")) is not None:
            await self._clock.sleep(action.get("seconds", 0))
        else:
            raise HookError(f"Cannot run handler: invalid handler: {json.dumps(handler)}")

    async def _exec(self, container_id: str, command: list[str], where: str) -> None:
        words = " ".join(command)
        try:
            result = await self._handlers.run(container_id, command)
        except RuntimeFault as fault:
            raise HookError(f'Exec lifecycle hook ([{words}]) {where}: {fault}, message: ""') from None
        if result.exit_code != 0:
            errors = result.stderr.decode("utf-8", "replace")
            message = go_quote((result.stdout + result.stderr).decode("utf-8", "replace"))
            why = f"command '{words}' exited with {result.exit_code}: {errors}"
            raise HookError(f"Exec lifecycle hook ([{words}]) {where}: {why}, message: {message}")

    async def _http_get(self, pod: Object, container: Object, action: Object, pod_ip: str) -> None:
        """An HTTPS hook that is answered in plain HTTP is asked again so, without its Authorization header."""
        try:
            await self._handlers.fetch(container, action, pod_ip, 0, USER_AGENT)
        except NoAnswer as error:
            if not str(error).endswith(PLAIN_HTTP):
                raise
            plain = [h for h in action.get("httpHeaders") or () if h["name"].lower() != "authorization"]
            await self._handlers.fetch(
                container, {**action, "httpHeaders": plain}, pod_ip, 0, USER_AGENT, scheme="http"
            )
            if self._recorder is not None:
                address = f"{action.get('host') or pod_ip}:{resolve_port(container, action['port'])}"
                what = f"request to HTTPS lifecycle hook {address} got HTTP response, retry with HTTP succeeded"
                self._recorder.event(pod, "Warning", "LifecycleHTTPFallback", what)
