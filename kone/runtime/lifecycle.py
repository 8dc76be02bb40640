"""postStart and preStop handlers: what a container does just after its start and just before its stop."""

from __future__ import annotations

from kone.aio.clock import Clock
from kone.apimachinery.objects import Object
from kone.runtime.handlers import Answer, Handlers
from kone.runtime.parts import HookError

USER_AGENT = "kube-lifecycle/1.37"
EXEC_TIMEOUT_S = 24 * 3600.0  # none of its own: the caller's grace period cuts it off


class Hooks:
    """The HookRunner of parts.py."""

    def __init__(self, handlers: Handlers, clock: Clock) -> None:
        self._handlers, self._clock = handlers, clock

    async def run(self, pod: Object, container: Object, container_id: str, handler: Object, pod_ip: str) -> None:
        answer = await self._run(container, container_id, handler, pod_ip)
        if answer.verdict in ("failure", "error"):
            raise HookError(answer.output)

    async def _run(self, container: Object, container_id: str, handler: Object, pod_ip: str) -> Answer:
        if (action := handler.get("exec")) is not None:
            answer = await self._handlers.exec(container_id, action.get("command") or [], EXEC_TIMEOUT_S)
            if answer.verdict == "failure":
                return Answer("failure", f"command {action.get('command')!r} exited unsuccessfully: {answer.output}")
            return answer
        if (action := handler.get("httpGet")) is not None:
            return await self._handlers.http_get(container, action, pod_ip, 0, USER_AGENT)
        if (action := handler.get("tcpSocket")) is not None:
            return await self._handlers.tcp_connect(container, action, pod_ip, 0)
        if (action := handler.get("sleep")) is not None:
            await self._clock.sleep(action.get("seconds", 0))
            return Answer("success")
        return Answer("error", f"invalid handler: {handler}")
