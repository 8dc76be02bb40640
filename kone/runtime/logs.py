"""A container's log as `kubectl logs` asks for it: which container, which lines, in what form.

Rules and texts: kubernetes/pkg/kubelet/server (the query) and kubelet_pods.go (which container's log is meant).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from kone.apimachinery.errors import StatusError, bad_request, go_quote
from kone.apimachinery.objects import Object, dig, name_of
from kone.apimachinery.timestamps import parse_time
from kone.runtime.runtime import Runtime

INVALID = '{"message": "Invalid request."}'
STATUS_FIELDS = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
SPEC_FIELDS = ("containers", "initContainers", "ephemeralContainers")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """PodLogOptions of the core API; `since` in Unix seconds, 0 for everything."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: float = 0.0
    stdout: bool = True
    stderr: bool = True


def parse_options(query: Mapping[str, str], now: float) -> LogOptions:
    """Read a query string. Raises StatusError 400 for what is no number or time, 422 for what may not be."""
    tail = query.get("tailLines", "")
    if query.get("tail"):  # what it was called once
        tail = "" if query["tail"] == "all" else query["tail"]
    try:
        since_time = parse_time(query["sinceTime"]) if query.get("sinceTime") else None
        since_seconds = _number(query.get("sinceSeconds", ""))
        tail_lines, limit_bytes = _number(tail), _number(query.get("limitBytes", ""))
    except ValueError:
        raise bad_request('{"message": "Unable to decode query."}') from None
    stream = query.get("stream") or "All"
    is_valid = (
        (tail_lines is None or tail_lines >= 0)
        and (limit_bytes is None or limit_bytes > 0)
        and (since_seconds is None or (since_seconds > 0 and since_time is None))
        and stream in ("All", "Stdout", "Stderr")
        and (stream == "All" or tail_lines is None)
    )
    if not is_valid:
        raise StatusError(422, "Invalid", INVALID)
    return LogOptions(
        follow=_is_true(query.get("follow", "")),
        previous=_is_true(query.get("previous", "")),
        timestamps=_is_true(query.get("timestamps", "")),
        tail_lines=tail_lines,
        limit_bytes=limit_bytes,
        since=(since_time or 0.0) if since_seconds is None else now - since_seconds,
        stdout=stream != "Stderr",
        stderr=stream != "Stdout",
    )


def _number(text: str) -> int | None:
    return int(text) if text else None


def _is_true(text: str) -> bool:
    return text.lower() in ("1", "true", "t")


def container_of_log(pod: Object, container: str, *, previous: bool) -> str:
    """The id of the container whose log is meant, by the pod's status. Raises StatusError 404 and 400.

    Worked case: a container that crashed and waits has no log of its own yet: both `logs` and `logs --previous` mean
    the run that crashed last.
    """
    name = name_of(pod)
    if not any(c["name"] == container for field in SPEC_FIELDS for c in pod["spec"].get(field) or ()):
        raise StatusError(404, "NotFound", f"container {go_quote(container)} not found in pod {go_quote(name)}")
    where = f"container {go_quote(container)} in pod {go_quote(name)}"
    status = next(
        (s for field in STATUS_FIELDS for s in dig(pod, "status", field, default=()) if s.get("name") == container),
        None,
    )
    if status is None:
        raise bad_request(f"{where} is not available")
    state = status.get("state") or {}
    last = dig(status, "lastState", "terminated", "containerID", default="")
    if previous:
        if not last:
            raise bad_request(f"previous terminated {where} not found")
        return _id(last)
    if "running" in state:
        return _id(status.get("containerID", ""))
    if "terminated" in state and (ended := state["terminated"].get("containerID")):
        return _id(ended)
    if last:
        return _id(last)
    if "terminated" in state or dig(status, "lastState", "terminated") is not None:
        raise bad_request(f"{where} is terminated")
    match dig(state, "waiting", "reason", default=""):
        case "ErrImagePull":
            raise bad_request(f"{where} is waiting to start: image can't be pulled")
        case "ImagePullBackOff":
            raise bad_request(f"{where} is waiting to start: trying and failing to pull image")
        case "":
            raise bad_request(f"{where} is waiting to start - no logs yet")
        case reason:
            raise bad_request(f"{where} is waiting to start: {reason}")


def _id(container_id: str) -> str:
    """Without the runtime's name: "docker://abc" -> "abc"."""
    return container_id.rpartition("//")[2]


async def read_log(runtime: Runtime, container_id: str, options: LogOptions) -> AsyncGenerator[bytes, None]:
    """The bytes of the answer, a line or a part of one at a time. Raises RuntimeFault."""
    left = options.limit_bytes
    begins_line = True
    lines = runtime.logs(
        container_id,
        follow=options.follow,
        tail_lines=options.tail_lines,
        since=options.since,
        stdout=options.stdout,
        stderr=options.stderr,
    )
    try:
        async for line in lines:
            data = line.data
            if options.timestamps and begins_line:
                data = line.timestamp.encode() + b" " + data
            begins_line = line.data.endswith(b"\n")
            if left is not None:
                data = data[:left]
                left -= len(data)
            yield data
            if left == 0:
                return
    finally:
        if isinstance(lines, AsyncGenerator):
            await lines.aclose()  # now, not when the garbage is collected: it holds a connection to the runtime
