"""A container's last words: what it wrote to its termination message file, else, where asked for, the end of its
log.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from kone.runtime.container_config import TERMINATION_MESSAGE_FILE, TERMINATION_MESSAGE_POLICY
from kone.runtime.runtime import ContainerStatus, Runtime, RuntimeFault

# docs, Determine the Reason for Pod Failure
MESSAGE_MAX_BYTES = 4096
LOG_MAX_BYTES = 2048
LOG_MAX_LINES = 80


async def last_words(runtime: Runtime, status: ContainerStatus) -> str:
    """The message of a container that has ended, the runtime's own in front; "" where it left none."""
    said = _read_end(status.labels.get(TERMINATION_MESSAGE_FILE, ""))
    wants_log = status.labels.get(TERMINATION_MESSAGE_POLICY) == "FallbackToLogsOnError" and status.exit_code != 0
    if not said and wants_log and status.started_at:
        said = await _end_of_log(runtime, status.id)
    return ": ".join(part for part in (status.message, said) if part)


def _read_end(path: str) -> str:
    """The last 4096 bytes of the file."""
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MESSAGE_MAX_BYTES))
            return file.read(MESSAGE_MAX_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"Error on reading termination log {path}: {error.strerror}"


async def _end_of_log(runtime: Runtime, container_id: str) -> str:
    pieces: deque[bytes] = deque()
    length = 0
    try:
        async for line in runtime.logs(container_id, tail_lines=LOG_MAX_LINES):
            pieces.append(line.data)
            length += len(line.data)
            while pieces and length - len(pieces[0]) >= LOG_MAX_BYTES:
                length -= len(pieces.popleft())
    except RuntimeFault as fault:
        return f"Error on reading termination message from logs: {fault}"
    return b"".join(pieces)[-LOG_MAX_BYTES:].decode(errors="replace")
