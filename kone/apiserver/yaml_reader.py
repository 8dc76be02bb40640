"""Large YAML is read by a process of its own: libyaml holds the interpreter's lock for seconds a megabyte of small
values, in which the server would answer nobody.

    body = await read(body)              # takes as long as it takes, and nobody waits for it but its sender
    value, twice = yaml_text.load(body)  # at once

Run as a program it reads a text from its standard input and writes {"value", "twice"} or {"error"}.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import Any, Final

import orjson

from kone.apiserver import yaml_text
from kone.apiserver.yaml_text import Loaded, YamlError

AT_ONCE: Final = 2  # texts that are being read; others wait
MEMORY_MAX_BYTES: Final = 2 * 1024**3
CPU_MAX_S: Final = 60
TOO_MUCH: Final = "document contains more than can be read"

_turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


async def read(text: bytes) -> bytes:
    """The text as `yaml_text.load` reads it without effort: itself where it is JSON."""
    if text.lstrip()[:1] == b"{" and await asyncio.to_thread(_is_json, text):
        return text
    loop = asyncio.get_running_loop()
    if loop not in _turns:
        _turns.clear()
        _turns[loop] = asyncio.Semaphore(AT_ONCE)
    async with _turns[loop]:
        answer = await _asked(text)
    return await asyncio.to_thread(_loaded, text, answer)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


async def _asked(text: bytes) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        answer, _ = await process.communicate(text)
        return answer
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _loaded(text: bytes, answer: bytes) -> Loaded:
    try:
        found = orjson.loads(answer)
    except orjson.JSONDecodeError:  # it was ended by its limits
        found = {"error": TOO_MUCH}
    return Loaded(text, found.get("value"), found.get("twice") or [], found.get("error"))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S))
    found: dict[str, Any]
    try:
        value, twice = yaml_text.load(sys.stdin.buffer.read())
        found = {"value": value, "twice": twice}
    except YamlError as error:
        found = {"error": str(error)}
    sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS))


if __name__ == "__main__":
    main()
