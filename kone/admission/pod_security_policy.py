"""What a namespace asks of its pods: its labels over the cluster's defaults, and who is exempt from all of it.

Defaults and exemptions come from the plugin's configuration, a PodSecurityConfiguration of
pod-security.admission.config.k8s.io.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kone.admission.pod_security_checks import Level
from kone.apimachinery.config_files import load, refuse
from kone.apimachinery.errors import FieldError, duplicate, invalid_value
from kone.apimachinery.names import is_dns1123_label, is_dns1123_subdomain

PREFIX = "pod-security.kubernetes.io/"
STRICTNESS: Mapping[Level, int] = {"privileged": 0, "baseline": 1, "restricted": 2}
API_VERSIONS = tuple(f"pod-security.admission.config.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
MODES = ("enforce", "audit", "warn")
LATEST = "latest"
WRONG_LEVEL = f"must be one of {', '.join(STRICTNESS)}"
WRONG_VERSION = 'must be "latest" or "v1.x"'
_VERSION = re.compile(r"v1\.(0|[1-9][0-9]*)")
_SHAPE = {
    "defaults": {mode + suffix: str for mode in MODES for suffix in ("", "-version")},
    "exemptions": {"usernames": [str], "namespaces": [str], "runtimeClasses": [str]},
}


class Bar(NamedTuple):
    """A level at a version; minor None is the latest."""

    level: Level = "privileged"
    minor: int | None = None

    def __str__(self) -> str:
        return f"{self.level}:{LATEST if self.minor is None else f'v1.{self.minor}'}"


class Bars(NamedTuple):
    """A bar for each mode."""

    enforce: Bar = Bar()
    audit: Bar = Bar()
    warn: Bar = Bar()

    @property
    def is_privileged(self) -> bool:
        return all(bar.level == "privileged" for bar in self)

    def is_like(self, other: Bars) -> bool:
        """Whether both ask for the same; versions of what is privileged do not matter."""
        return all(a == b or a.level == b.level == "privileged" for a, b in zip(self, other, strict=True))


PRIVILEGED = Bars()


class Policy(NamedTuple):
    bars: Bars
    errors: list[FieldError]


class Configuration(NamedTuple):
    """The bars of namespaces that say nothing, and who is exempt."""

    defaults: Bars = PRIVILEGED
    usernames: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    runtime_classes: frozenset[str] = frozenset()


NOTHING_CONFIGURED = Configuration()


def parse(text: str) -> Configuration:
    """Raises ConfigFileError."""
    found = load(text, "PodSecurityConfiguration", API_VERSIONS, _SHAPE)
    errors: list[FieldError] = []
    defaults, exemptions = found.get("defaults") or {}, found.get("exemptions") or {}
    bars = Bars(*(_default_bar(defaults, mode, errors) for mode in MODES))
    namespaces = _exempt(exemptions, "namespaces", errors)
    runtime_classes = _exempt(exemptions, "runtimeClasses", errors)
    usernames = _exempt(exemptions, "usernames", errors)
    refuse(errors)
    return Configuration(bars, usernames, namespaces, runtime_classes)


def _default_bar(defaults: Mapping[str, Any], mode: str, errors: list[FieldError]) -> Bar:
    text = defaults.get(mode) or "privileged"
    level = _level(text)
    if level is None:
        errors.append(invalid_value(f"defaults.{mode}", text, WRONG_LEVEL))
    text = defaults.get(f"{mode}-version") or LATEST
    minor, is_valid = _minor(text)
    if not is_valid:
        errors.append(invalid_value(f"defaults.{mode}-version", text, WRONG_VERSION))
    return Bar(level or "privileged", minor)


def _exempt(exemptions: Mapping[str, Any], kind: str, errors: list[FieldError]) -> frozenset[str]:
    seen: set[str] = set()
    for i, name in enumerate(exemptions.get(kind) or ()):
        at = f"exemptions.{kind}[{i}]"
        if problems := _problems(kind, name):
            errors.append(invalid_value(at, name, ", ".join(problems)))
        elif name in seen:
            errors.append(duplicate(at, name))
        else:
            seen.add(name)
    return frozenset(seen)


def _problems(kind: str, name: str) -> Sequence[str]:
    if kind == "usernames":
        return () if name else ("username must not be empty",)
    return is_dns1123_label(name) if kind == "namespaces" else is_dns1123_subdomain(name)


def policy_of(labels: Mapping[str, str], defaults: Bars = PRIVILEGED) -> Policy:
    """What a namespace's labels ask for. A wrong enforce label enforces the strictest level, a wrong audit or warn
    label notes and warns of nothing; all are among the errors."""
    errors: list[FieldError] = []
    enforce, enforce_is_given = _bar(labels, "enforce", defaults.enforce, errors)
    audit, _ = _bar(labels, "audit", defaults.audit, errors)
    warn, _ = _bar(labels, "warn", defaults.warn, errors)
    if f"{PREFIX}warn" not in labels and enforce_is_given and STRICTNESS[enforce.level] > STRICTNESS[warn.level]:
        minor = warn.minor if f"{PREFIX}warn-version" in labels else enforce.minor
        warn = Bar(enforce.level, minor)
    return Policy(Bars(enforce, audit, warn), errors)


def _bar(labels: Mapping[str, str], mode: str, default: Bar, errors: list[FieldError]) -> tuple[Bar, bool]:
    """(the level and version of a mode, whether a valid level is given)."""
    level, minor = default
    is_given = False
    key = PREFIX + mode
    if (text := labels.get(key)) is not None:
        found = _level(text)
        if found is None:
            errors.append(_wrong(key, text, WRONG_LEVEL))
            level = "restricted" if mode == "enforce" else "privileged"
        else:
            level, is_given = found, True
    key = f"{PREFIX}{mode}-version"
    if (text := labels.get(key)) is not None:
        minor, is_valid = _minor(text)
        if not is_valid:
            errors.append(_wrong(key, text, WRONG_VERSION))
    return Bar(level, minor), is_given


def _level(text: str) -> Level | None:
    return next((known for known in STRICTNESS if known == text), None)


def _minor(text: str) -> tuple[int | None, bool]:
    """(the minor version, None for the latest; whether the text is one). What is none is taken for the latest."""
    if text == LATEST:
        return None, True
    match = _VERSION.fullmatch(text)
    return (int(match[1]), True) if match else (None, False)


def _wrong(label: str, value: str, why: str) -> FieldError:
    return invalid_value(f"metadata.labels[{label}]", value, why)
