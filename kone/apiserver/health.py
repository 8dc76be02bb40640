"""/livez, /readyz and /healthz: named checks, each of which says in a word what is wrong; and how often they held.

The names are upstream's, for those who ask for one or leave one out. What upstream's server does in hooks after its
start is done here before it listens: those checks are one fact.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

log = logging.getLogger(__name__)

HOOKS: Final = tuple(
    f"poststarthook/{name}"
    for name in (
        "start-apiserver-admission-initializer",
        "storage-readiness",
        "generic-apiserver-start-informers",
        "priority-and-fairness-config-consumer",
        "priority-and-fairness-filter",
        "storage-object-count-tracker-hook",
        "start-apiextensions-informers",
        "start-apiextensions-controllers",
        "crd-informer-synced",
        "start-system-namespaces-controller",
        "start-legacy-token-tracking-controller",
        "start-service-ip-repair-controllers",
        "rbac/bootstrap-roles",
        "scheduling/bootstrap-system-priority-classes",
        "priority-and-fairness-config-producer",
        "bootstrap-controller",
        "start-kubernetes-service-cidr-controller",
        "aggregator-reload-proxy-client-cert",
        "start-kube-aggregator-informers",
        "start-cluster-authentication-info-controller",
        "apiservice-status-local-available-controller",
        "apiservice-status-remote-available-controller",
        "apiservice-registration-controller",
        "apiservice-discovery-controller",
        "kube-apiserver-autoregistration",
        "apiservice-openapi-controller",
        "apiservice-openapiv3-controller",
    )
)
NOT_STARTED: Final = "not finished"
STOPPING: Final = "process is shutting down"

Check = Callable[[], str | Awaitable[str]]
"""Says what is wrong, "" for nothing."""


@dataclass(slots=True)
class Health:
    """The checks of a server. `live` are of /livez and /healthz, `ready` come on top for /readyz. `stopping` is said
    before the server takes no more requests, so that nobody is sent to it any more."""

    live: dict[str, Check] = field(default_factory=dict)
    ready: dict[str, Check] = field(default_factory=dict)
    started: bool = False
    stopping: bool = False
    _last: dict[tuple[str, str], bool] = field(default_factory=dict)
    _counts: Counter[tuple[str, str, bool]] = field(default_factory=Counter)

    def _checks(self, endpoint: str) -> dict[str, Check]:
        started: Check = lambda: "" if self.started else NOT_STARTED  # noqa: E731 - one check, many names
        fine: Check = lambda: ""  # noqa: E731
        checks: dict[str, Check] = {"ping": fine, "log": fine, **self.live}
        if endpoint == "readyz":
            checks |= {"etcd-readiness": self.live.get("etcd", fine), "informer-sync": started}
        checks |= dict.fromkeys((*HOOKS, "autoregister-completion"), started)
        if endpoint == "readyz":
            checks |= {"shutdown": lambda: STOPPING if self.stopping else "", **self.ready}
        return checks

    async def answer(self, path: str, *, verbose: bool, exclude: Sequence[str] = ()) -> tuple[int, str] | None:
        """(HTTP code, text) for /livez, /readyz, /healthz or one check below them; None where there is no such path."""
        endpoint, _, single = path.strip("/").partition("/")
        if endpoint not in ("livez", "readyz", "healthz"):
            return None
        checks = self._checks(endpoint)
        if single:
            if single not in checks:
                return None
            wrong = await self._run(endpoint, single, checks[single])
            return (500, f"internal server error: {wrong}\n") if wrong else (200, "ok")
        lines: list[str] = []
        failed = False
        for name, check in checks.items():
            if name in exclude:
                lines.append(f"[+]{name} excluded: ok")
                continue
            wrong = await self._run(endpoint, name, check)
            failed = failed or bool(wrong)
            lines.append(f"[-]{name} failed: {wrong}" if wrong else f"[+]{name} ok")
        if failed:
            return 500, "\n".join([*lines, f"{endpoint} check failed", ""])
        return 200, "\n".join([*lines, f"{endpoint} check passed", ""]) if verbose else "ok"

    async def _run(self, endpoint: str, name: str, check: Check) -> str:
        wrong = await _run(name, check)
        self._last[name, endpoint] = not wrong
        self._counts[name, endpoint, not wrong] += 1
        return wrong

    async def text(self) -> str:
        """The exposition of /metrics/slis: each check that was made, by its last outcome and by all of them. A server
        that nobody has probed looks at itself first."""
        if not self._last:
            await self.answer("/livez", verbose=False)
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# HELP kubernetes_healthcheck [STABLE] This metric records the result of all healthchecks."
        yield "# TYPE kubernetes_healthcheck gauge"
        for (name, endpoint), held in sorted(self._last.items()):
            yield f'kubernetes_healthcheck{{name="{name}",type="{endpoint}"}} {int(held)}'
        yield "# HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck."
        yield "# TYPE kubernetes_healthchecks_total counter"
        for (name, endpoint, held), count in sorted(self._counts.items()):
            status = "success" if held else "error"
            yield f'kubernetes_healthchecks_total{{name="{name}",status="{status}",type="{endpoint}"}} {count}'


async def _run(name: str, check: Check) -> str:
    try:
        found = check()
        return await found if inspect.isawaitable(found) else found
    except Exception as error:
        log.exception("the health check %s failed", name)
        return str(error) or type(error).__name__
