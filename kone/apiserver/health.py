"""/livez, /readyz and /healthz: named checks, each of which says in a word what is wrong."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

Check = Callable[[], str | Awaitable[str]]
"""Says what is wrong, "" for nothing."""


@dataclass(slots=True)
class Health:
    """The checks of a server. `live` are of /livez and /healthz, `ready` come on top for /readyz."""

    live: dict[str, Check] = field(default_factory=dict)
    ready: dict[str, Check] = field(default_factory=dict)

    async def answer(self, path: str, *, verbose: bool, exclude: Sequence[str] = ()) -> tuple[int, str] | None:
        """(HTTP code, text) for /livez, /readyz, /healthz or one check below them; None where there is no such path."""
        endpoint, _, single = path.strip("/").partition("/")
        checks = dict(self.live)
        if endpoint == "readyz":
            checks |= self.ready
        elif endpoint not in ("livez", "healthz"):
            return None
        if single:
            if single not in checks:
                return None
            wrong = await _run(single, checks[single])
            return (500, f"internal server error: {wrong}\n") if wrong else (200, "ok")
        lines: list[str] = []
        failed = False
        for name, check in checks.items():
            if name in exclude:
                lines.append(f"[+]{name} excluded: ok")
                continue
            wrong = await _run(name, check)
            failed = failed or bool(wrong)
            lines.append(f"[-]{name} failed: {wrong}" if wrong else f"[+]{name} ok")
        if failed:
            return 500, "\n".join([*lines, f"{endpoint} check failed", ""])
        return 200, "\n".join([*lines, f"{endpoint} check passed", ""]) if verbose else "ok"


async def _run(name: str, check: Check) -> str:
    try:
        found = check()
        return await found if inspect.isawaitable(found) else found
    except Exception as error:
        log.exception("the health check %s failed", name)
        return str(error) or type(error).__name__
