"""A container's log as `kubectl logs` asks for it: which container, which lines, in what form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from kone.apimachinery.errors import StatusError, bad_request
from kone.apimachinery.objects import Object, dig, name_of
from kone.apimachinery.timestamps import parse_time
from kone.runtime.parts import PodSource
from kone.runtime.runtime import ContainerState, ContainerStatus, Runtime


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
    """Read a query string, which the API server has validated. Raises StatusError 400 for what is no number or time."""
    try:
        since = parse_time(query["sinceTime"]) if query.get("sinceTime") else 0.0
        if query.get("sinceSeconds"):
            since = now - int(query["sinceSeconds"])
        return LogOptions(
            follow=_is_true(query.get("follow", "")),
            previous=_is_true(query.get("previous", "")),
            timestamps=_is_true(query.get("timestamps", "")),
            tail_lines=int(query["tailLines"]) if query.get("tailLines") else None,
            limit_bytes=int(query["limitBytes"]) if query.get("limitBytes") else None,
            since=since,
            stdout=query.get("stream", "All") in ("", "All", "Stdout"),
            stderr=query.get("stream", "All") in ("", "All", "Stderr"),
        )
    except ValueError as error:
        raise bad_request(f"Unable to decode query: {error}") from None


def _is_true(text: str) -> bool:
    return text.lower() in ("1", "true", "t")


def container_of_log(source: PodSource, pod: Object, container: str, *, previous: bool) -> ContainerStatus:
    """The container whose log is meant. Raises StatusError 400 in the kubelet's words where there is none yet."""
    uid, name = pod["metadata"]["uid"], name_of(pod)
    known = {
        c["name"]
        for field in ("initContainers", "containers", "ephemeralContainers")
        for c in pod["spec"].get(field) or ()
    }
    if container not in known:
        raise StatusError(404, "NotFound", f'container "{container}" not found in pod "{name}"')
    found = source.container(uid, container, previous=previous)
    if found is not None and found.state is not ContainerState.CREATED:
        return found
    if previous:
        raise bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
    reason = _waiting_reason(pod, container)
    if reason in ("ErrImagePull", "ImagePullBackOff"):
        raise bad_request(
            f'container "{container}" in pod "{name}" is waiting to start: trying and failing to pull image'
        )
    if reason:
        raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
    raise bad_request(f'container "{container}" in pod "{name}" is not available')


def _waiting_reason(pod: Object, container: str) -> str:
    for field in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for status in dig(pod, "status", field, default=()):
            if status.get("name") == container:
                return str(dig(status, "state", "waiting", "reason", default=""))
    return "ContainerCreating"


async def read_log(runtime: Runtime, container_id: str, options: LogOptions) -> AsyncIterator[bytes]:
    """The bytes of the answer, a line or a part of one at a time."""
    left = options.limit_bytes
    begins_line = True
    async for line in runtime.logs(
        container_id,
        follow=options.follow,
        tail_lines=options.tail_lines,
        since=options.since,
        stdout=options.stdout,
        stderr=options.stderr,
    ):
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
