"""Which container's log is meant, what the query may say, and what of the log is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kone.apimachinery.errors import StatusError
from kone.runtime.logs import LogOptions, container_of_log, parse_options, read_log
from kone.runtime.runtime import LogLine

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, LogOptions()),
        ({"follow": "true", "previous": "1", "timestamps": "T"}, LogOptions(True, True, True)),
        ({"tailLines": "0", "limitBytes": "9"}, LogOptions(tail_lines=0, limit_bytes=9)),
        ({"tail": "3"}, LogOptions(tail_lines=3)),
        ({"tail": "all", "tailLines": "5"}, LogOptions()),
        ({"sinceSeconds": "60"}, LogOptions(since=NOW - 60)),
        ({"sinceTime": "2023-11-14T22:13:20Z"}, LogOptions(since=NOW)),
        ({"stream": "Stderr"}, LogOptions(stdout=False)),
        ({"stream": "Stdout"}, LogOptions(stderr=False)),
    ],
)
def test_options(query: dict[str, str], expected: LogOptions) -> None:
    assert parse_options(query, NOW) == expected


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"tailLines": "x"}, 400),
        ({"sinceTime": "yesterday"}, 400),
        ({"tailLines": "-1"}, 422),
        ({"limitBytes": "0"}, 422),
        ({"sinceSeconds": "0"}, 422),
        ({"sinceSeconds": "1", "sinceTime": "2023-11-14T22:13:20Z"}, 422),
        ({"stream": "Both"}, 422),
        ({"stream": "Stdout", "tailLines": "1"}, 422),
    ],
)
def test_options_that_may_not_be(query: dict[str, str], code: int) -> None:
    with pytest.raises(StatusError) as caught:
        parse_options(query, NOW)
    assert caught.value.code == code


def pod(state: dict[str, Any] | None, last: dict[str, Any] | None = None) -> dict[str, Any]:
    status = {"name": "c", "state": state, "lastState": last or {}, "containerID": "docker://now"}
    return {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"containerStatuses": [status] if state is not None else []},
    }


RUNNING: dict[str, Any] = {"running": {"startedAt": "x"}}
ENDED: dict[str, Any] = {"terminated": {"containerID": "docker://now"}}
BEFORE: dict[str, Any] = {"terminated": {"containerID": "docker://before"}}


def waiting(reason: str) -> dict[str, Any]:
    return {"waiting": {"reason": reason}}


@pytest.mark.parametrize(
    ("found", "previous", "container"),
    [
        (pod(RUNNING), False, "now"),
        (pod(ENDED), False, "now"),
        (pod(RUNNING, BEFORE), True, "before"),
        (pod(waiting("CrashLoopBackOff"), BEFORE), False, "before"),
        (pod(waiting("CrashLoopBackOff"), BEFORE), True, "before"),
        (pod({"terminated": {}}, BEFORE), False, "before"),
    ],
    ids=["runs", "has ended", "the run before", "crashed", "crashed, previous", "could not be started again"],
)
def test_which_run_is_meant(found: dict[str, Any], previous: bool, container: str) -> None:
    assert container_of_log(found, "c", previous=previous) == container


@pytest.mark.parametrize(
    ("found", "name", "previous", "text"),
    [
        (pod(RUNNING), "x", False, 'container "x" not found in pod "p"'),
        (pod(None), "c", False, 'container "c" in pod "p" is not available'),
        (pod(ENDED), "c", True, 'previous terminated container "c" in pod "p" not found'),
        (
            pod(waiting("ErrImagePull")),
            "c",
            False,
            'container "c" in pod "p" is waiting to start: image can\'t be pulled',
        ),
        (
            pod(waiting("ImagePullBackOff")),
            "c",
            False,
            'container "c" in pod "p" is waiting to start: trying and failing to pull image',
        ),
        (
            pod(waiting("ContainerCreating")),
            "c",
            False,
            'container "c" in pod "p" is waiting to start: ContainerCreating',
        ),
        (pod({"terminated": {}}), "c", False, 'container "c" in pod "p" is terminated'),
        (pod({}), "c", False, 'container "c" in pod "p" is waiting to start - no logs yet'),
    ],
)
def test_logs_that_are_not_there(found: dict[str, Any], name: str, previous: bool, text: str) -> None:
    with pytest.raises(StatusError) as caught:
        container_of_log(found, name, previous=previous)
    assert caught.value.message == text


class FakeRuntime:
    """`closed` tells whether what reads the log has let go of it."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.closed = pieces, False

    async def logs(self, container_id: str, **options: Any) -> AsyncIterator[LogLine]:
        try:
            for piece in self.pieces:
                yield LogLine("stdout", NOW, "2023-11-14T22:13:20.000000000Z", piece)
        finally:
            self.closed = True


async def read(runtime: FakeRuntime, **options: Any) -> bytes:
    return b"".join([piece async for piece in read_log(runtime, "i", LogOptions(**options))])  # type: ignore[arg-type]


async def test_a_line_in_pieces_has_one_timestamp() -> None:
    runtime = FakeRuntime(b"long ", b"line\n", b"next\n")
    stamp = b"2023-11-14T22:13:20.000000000Z "
    assert await read(runtime, timestamps=True) == stamp + b"long line\n" + stamp + b"next\n"


async def test_a_limit_counts_bytes_and_lets_go_of_the_rest() -> None:
    runtime = FakeRuntime(b"line 1\n", b"line 2\n", b"line 3\n")
    assert await read(runtime, limit_bytes=10) == b"line 1\nlin"
    assert runtime.closed
