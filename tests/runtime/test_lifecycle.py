"""postStart and preStop: what counts as a hook that ran, and what is said of one that did not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.objects import Object
from kone.runtime.handlers import PLAIN_HTTP, NoAnswer
from kone.runtime.lifecycle import Hooks
from kone.runtime.parts import HookError
from kone.runtime.runtime import ExecResult

POD: Object = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {}}
CONTAINER: Object = {"name": "c"}


class FakeHandlers:
    """`pages` maps a URL's scheme to the status that is answered, or to why nothing is."""

    def __init__(self) -> None:
        self.result = ExecResult(0)
        self.pages: dict[str, int | str] = {"http": 200}
        self.headers: list[Any] = []

    async def run(self, container_id: str, command: Sequence[str]) -> ExecResult:
        return self.result

    async def fetch(
        self, container: Object, action: Object, pod_ip: str, timeout_s: float, agent: str, *, scheme: str = ""
    ) -> tuple[int, str]:
        self.headers.append(action.get("httpHeaders"))
        answer = self.pages[scheme or action.get("scheme", "http").lower()]
        if isinstance(answer, str):
            raise NoAnswer(f'Get "x": {answer}')
        return answer, ""


class Recorder:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        self.told.append((reason, message))


class World:
    def __init__(self) -> None:
        self.clock, self.handlers, self.recorder = FakeClock(), FakeHandlers(), Recorder()
        self.hooks = Hooks(self.handlers, self.clock, self.recorder)  # type: ignore[arg-type]

    async def run(self, **handler: Any) -> None:
        await self.hooks.run(POD, CONTAINER, "id", handler, "10.0.0.1")

    async def fails(self, **handler: Any) -> str:
        with pytest.raises(HookError) as caught:
            await self.run(**handler)
        return str(caught.value)


async def test_a_command_that_fails() -> None:
    world = World()
    await world.run(exec={"command": ["true"]})
    world.handlers.result = ExecResult(3, b"out", b"err")
    assert await world.fails(exec={"command": ["sh", "-c", "exit 3"]}) == (
        'Exec lifecycle hook ([sh -c exit 3]) for Container "c" in Pod "p_n(u)" failed - error: '
        "command 'sh -c exit 3' exited with 3: err, message: \"outerr\""
    )


async def test_any_answer_over_http_will_do() -> None:
    world = World()
    world.handlers.pages["http"] = 500
    await world.run(httpGet={"port": 80, "path": "/x"})
    world.handlers.pages["http"] = "connection refused"
    assert await world.fails(httpGet={"port": 80, "path": "/x"}) == (
        'HTTP lifecycle hook (/x) for Container "c" in Pod "p_n(u)" failed - error: Get "x": connection refused'
    )


async def test_https_that_is_answered_in_plain_http_is_asked_again_without_its_secret() -> None:
    world = World()
    world.handlers.pages["https"] = PLAIN_HTTP
    headers = [{"name": "Authorization", "value": "secret"}, {"name": "X", "value": "1"}]
    await world.run(httpGet={"port": 443, "scheme": "HTTPS", "httpHeaders": headers})
    assert world.handlers.headers == [headers, headers[1:]]
    message = "request to HTTPS lifecycle hook 10.0.0.1:443 got HTTP response, retry with HTTP succeeded"
    assert world.recorder.told == [("LifecycleHTTPFallback", message)]


async def test_sleep_takes_its_time_and_may_be_cut_off() -> None:
    world = World()
    hook = asyncio.create_task(world.run(sleep={"seconds": 5}))
    await world.clock.advance(4)
    assert not hook.done()
    await world.clock.advance(1)
    assert hook.done()
    cut = asyncio.create_task(world.run(sleep={"seconds": 500}))
    await settle()
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut


async def test_a_hook_of_no_known_kind() -> None:
    said = await World().fails(tcpSocket={"port": 80})
    assert said == 'Cannot run handler: invalid handler: {"tcpSocket": {"port": 80}}'
