"""What of a request is recorded: the audit policy file (audit.k8s.io/v1 Policy), and which of its rules a request
meets. Pure.

The first rule that matches decides; a request that none matches is not recorded. Rules and texts: k8s.io/apiserver
pkg/audit/policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from kone.apimachinery import config_files
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.errors import FieldError, invalid_value, not_supported, required
from kone.apimachinery.names import is_dns1123_subdomain
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User

Level = Literal["None", "Metadata", "Request", "RequestResponse"]
LEVELS: Final[tuple[Level, ...]] = ("None", "Metadata", "Request", "RequestResponse")
REQUEST_RECEIVED: Final = "RequestReceived"
RESPONSE_STARTED: Final = "ResponseStarted"
RESPONSE_COMPLETE: Final = "ResponseComplete"
PANIC: Final = "Panic"
STAGES: Final = (REQUEST_RECEIVED, RESPONSE_STARTED, RESPONSE_COMPLETE, PANIC)

_SHAPE: Final = {
    "omitStages": [str],
    "omitManagedFields": bool,
    "rules": [
        {
            "level": str,
            "users": [str],
            "userGroups": [str],
            "verbs": [str],
            "namespaces": [str],
            "nonResourceURLs": [str],
            "omitStages": [str],
            "omitManagedFields": bool,
            "resources": [{"group": str, "resources": [str], "resourceNames": [str]}],
        }
    ],
}


@dataclass(frozen=True, slots=True)
class Recording:
    """How a request is recorded."""

    level: Level
    omit_stages: frozenset[str]
    omit_managed_fields: bool

    @property
    def takes_requests(self) -> bool:
        return self.level in ("Request", "RequestResponse")

    @property
    def takes_responses(self) -> bool:
        return self.level == "RequestResponse"


class Policy:
    """The rules of a policy file, in order."""

    def __init__(self, rules: Sequence[tuple[Mapping[str, Any], Recording]]) -> None:
        self._rules = rules

    def recording(self, user: User, request: AccessRequest) -> Recording | None:
        """How a request is recorded, None where it is not."""
        for rule, recording in self._rules:
            if _matches(rule, user, request):
                return None if recording.level == "None" else recording
        return None


def parse_policy(text: str) -> Policy:
    """The policy in a file. Raises ConfigFileError."""
    policy = config_files.load(text, "Policy", ("audit.k8s.io/v1",), _SHAPE)
    rules: list[Object] = policy.get("rules") or []
    if not rules:
        raise ConfigFileError("loaded illegal policy with 0 rules")
    config_files.refuse([error for i, rule in enumerate(rules) for error in _rule_errors(rule, f"rules[{i}]")])
    omitted = policy.get("omitStages") or ()
    config_files.refuse(list(_stage_errors(omitted, "omitStages")))
    without_managed_fields = bool(policy.get("omitManagedFields"))
    found = []
    for rule in rules:
        own = rule.get("omitManagedFields")
        stages = frozenset((*omitted, *(rule.get("omitStages") or ())))
        found.append((rule, Recording(rule["level"], stages, without_managed_fields if own is None else own)))
    return Policy(found)


def _matches(rule: Mapping[str, Any], user: User, request: AccessRequest) -> bool:
    if (users := rule.get("users")) and user.name not in users:
        return False
    if (groups := rule.get("userGroups")) and not any(group in groups for group in user.groups):
        return False
    if (verbs := rule.get("verbs")) and request.verb not in verbs:
        return False
    namespaces, resources = rule.get("namespaces"), rule.get("resources")
    if namespaces or resources:
        if not request.resource or (namespaces and request.namespace not in namespaces):
            return False
        return not resources or any(_names(each, request) for each in resources)
    if urls := rule.get("nonResourceURLs"):
        return not request.resource and any(_is_path(request.path, url) for url in urls)
    return True


def _names(group: Mapping[str, Any], request: AccessRequest) -> bool:
    """Whether a GroupResources means the requested object."""
    if group.get("group", "") != request.group:
        return False
    if not (resources := group.get("resources")):
        return True
    if (names := group.get("resourceNames")) and request.name not in names:
        return False
    meant = {"*", request.combined_resource, f"{request.resource}/*"}
    if request.subresource:
        meant.add(f"*/{request.subresource}")
    return any(resource in meant for resource in resources)


def _is_path(path: str, url: str) -> bool:
    return url in ("*", path) or (url.endswith("*") and path.startswith(url.rstrip("*")))


def _rule_errors(rule: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    level = rule.get("level") or ""
    if not level:
        yield required(f"{path}.level")
    elif level not in LEVELS:
        yield not_supported(f"{path}.level", level, LEVELS)
    urls: Sequence[str] = rule.get("nonResourceURLs") or ()
    for i, url in enumerate(urls):
        at = f"{path}.nonResourceURLs[{i}]"
        if url == "*":
            continue
        if not url.startswith("/"):
            yield invalid_value(at, url, "non-resource URL rules must begin with a '/' character")
        if "*" in url[:-1]:
            yield invalid_value(at, url, "non-resource URL wildcards '*' must be the final character of the rule")
    for group in rule.get("resources") or ():
        if (name := group.get("group")) and (messages := is_dns1123_subdomain(name)):
            yield invalid_value(f"{path}.resources.group", name, ",".join(messages))
        if (names := group.get("resourceNames")) and not group.get("resources"):
            why = "using resourceNames requires at least one resource"
            yield invalid_value(f"{path}.resources.resourceNames", names, why)
    yield from _stage_errors(rule.get("omitStages") or (), f"{path}.omitStages")
    if urls and (rule.get("resources") or rule.get("namespaces")):
        why = "rules cannot apply to both regular resources and non-resource URLs"
        yield invalid_value(f"{path}.nonResourceURLs", list(urls), why)


def _stage_errors(stages: Sequence[str], path: str) -> Iterator[FieldError]:
    for i, stage in enumerate(stages):
        if stage not in STAGES:
            yield invalid_value(f"{path}[{i}]", stage, f"allowed stages are {','.join(STAGES)}")
