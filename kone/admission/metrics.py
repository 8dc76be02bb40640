"""What admission counts and how long it takes, in Prometheus' text format under upstream's names.

A step is one pass of all plugins, "admit" or "validate"; upstream calls a plugin a controller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

from kone.aio.clock import Clock
from kone.apimachinery.histograms import Histogram

PREFIX: Final = "apiserver_admission_"
POLICY_S: Final = (0.0000005, 0.001, 0.01, 0.1, 1.0)
PASS_S: Final = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5)
WEBHOOK_S: Final = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10, 25)
MAX_CODE: Final = 600  # codes above it are as good as it: webhooks make them up

Kind = Literal["admit", "validate", "validating"]
"""The pass of a plugin; a validating webhook's has a name of its own."""
Labels = tuple[str, ...]


class AdmissionMetrics:
    def __init__(self, clock: Clock) -> None:
        self.now = clock.monotonic
        self._steps: dict[Labels, Histogram] = {}
        self._plugins: dict[Labels, Histogram] = {}
        self._webhooks: dict[Labels, Histogram] = {}
        self._requests: Counter[Labels] = Counter()
        self._rejections: Counter[Labels] = Counter()
        self._failed_open: Counter[Labels] = Counter()
        self._validations: dict[Labels, Histogram] = {}
        self._mutations: dict[Labels, Histogram] = {}

    def step(self, kind: Kind, operation: str, seconds: float, *, is_rejected: bool) -> None:
        _observe(self._steps, (kind, operation, _word(is_rejected)), seconds, PASS_S)

    def plugin(self, name: str, kind: Kind, operation: str, seconds: float, *, is_rejected: bool) -> None:
        _observe(self._plugins, (name, kind, operation, _word(is_rejected)), seconds, PASS_S)

    def webhook(
        self,
        name: str,
        kind: Kind,
        operation: str,
        seconds: float,
        code: int,
        *,
        error: str = "",
        ignored: bool = False,
    ) -> None:
        """One question: `code` is the answer's, 200 where it is yes; `error` is why it counts as a no, if it does."""
        shown, is_rejected = str(min(code, MAX_CODE)), bool(error) and not ignored
        _observe(self._webhooks, (name, kind, operation, _word(is_rejected)), seconds, WEBHOOK_S)
        self._requests[name, kind, operation, shown, _word(is_rejected)] += 1
        if is_rejected:
            self._rejections[name, kind, operation, error, shown] += 1
        elif ignored:
            self._failed_open[name, kind] += 1

    def validation(self, policy: str, binding: str, error: str, action: str, seconds: float) -> None:
        """One expression of a validating policy that did not hold, by what came of it: deny, warn, audit; or allow,
        where it failed and was ignored."""
        _observe(self._validations, (policy, binding, error, action), seconds, POLICY_S)

    def mutation(self, policy: str, binding: str, error: str, seconds: float) -> None:
        """All that one mutating policy did by one binding."""
        _observe(self._mutations, (policy, binding, error), seconds, POLICY_S)

    def text(self) -> Iterator[str]:
        """The exposition."""
        passes = ("type", "operation", "rejected")
        yield from _histograms("step_admission_duration_seconds", "Of a pass of all plugins.", passes, self._steps)
        yield from _histograms(
            "controller_admission_duration_seconds", "Of a pass of one plugin.", ("name", *passes), self._plugins
        )
        yield from _histograms(
            "webhook_admission_duration_seconds", "Of a question to a webhook.", ("name", *passes), self._webhooks
        )
        yield from _counters(
            "webhook_request_total",
            "Questions to webhooks.",
            ("name", "type", "operation", "code", "rejected"),
            self._requests,
        )
        yield from _counters(
            "webhook_rejection_count",
            "Refusals by webhooks.",
            ("name", "type", "operation", "error_type", "rejection_code"),
            self._rejections,
        )
        yield from _counters(
            "webhook_fail_open_count", "Webhooks that failed and were ignored.", ("name", "type"), self._failed_open
        )
        of = ("policy", "policy_binding", "error_type")
        yield from _policies("validating", (*of, "enforcement_action"), self._validations)
        yield from _policies("mutating", of, self._mutations)


def _word(value: bool) -> str:
    return "true" if value else "false"


def _observe(found: dict[Labels, Histogram], labels: Labels, seconds: float, bounds: tuple[float, ...]) -> None:
    histogram = found.get(labels)
    if histogram is None:
        histogram = found[labels] = Histogram(bounds)
    histogram.observe(seconds)


def _histograms(name: str, help: str, names: Labels, found: dict[Labels, Histogram]) -> Iterator[str]:
    yield from _head(name, "histogram", help)
    for values, histogram in sorted(found.items(), key=lambda item: item[0]):
        yield from histogram.lines(PREFIX + name, _labels(names, values))


def _policies(kind: str, names: Labels, found: dict[Labels, Histogram]) -> Iterator[str]:
    """Two families of the same checks: how many, and how long they took."""
    prefix = f"apiserver_{kind}_admission_policy_"
    yield f"# HELP {prefix}check_total Checks of {kind} policies."
    yield f"# TYPE {prefix}check_total counter"
    for values, histogram in sorted(found.items(), key=lambda item: item[0]):
        yield f"{prefix}check_total{{{_labels(names, values)}}} {histogram.count}"
    yield f"# HELP {prefix}check_duration_seconds Of a check of {kind} policies."
    yield f"# TYPE {prefix}check_duration_seconds histogram"
    for values, histogram in sorted(found.items(), key=lambda item: item[0]):
        yield from histogram.lines(f"{prefix}check_duration_seconds", _labels(names, values))


def _counters(name: str, help: str, names: Labels, found: Counter[Labels]) -> Iterator[str]:
    yield from _head(name, "counter", help)
    for values, count in sorted(found.items()):
        yield f"{PREFIX}{name}{{{_labels(names, values)}}} {count}"


def _head(name: str, kind: str, help: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {help}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _labels(names: Labels, values: Labels) -> str:
    return ",".join(f'{name}="{value}"' for name, value in zip(names, values, strict=True))
