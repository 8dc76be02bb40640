"""admissionregistration.k8s.io: webhooks that admission asks, and what policies share with them.

What CEL expressions say is judged in policy_expressions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from kone.apimachinery.errors import FieldError, duplicate, invalid_value, not_supported, required
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import (
    is_dns1035_label,
    is_dns1123_subdomain,
    is_fully_qualified_name,
    is_qualified_name,
    is_valid_port_num,
)
from kone.apimachinery.objects import Object, dig
from kone.registry.policy_expressions import Expressions, finding
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check, label_selector
from kone.registry.strategy import Strategy

GROUP = "admissionregistration.k8s.io"
CATEGORIES = ("api-extensions",)
MUTATINGWEBHOOKCONFIGURATIONS = GVR(GROUP, "v1", "mutatingwebhookconfigurations")
VALIDATINGWEBHOOKCONFIGURATIONS = GVR(GROUP, "v1", "validatingwebhookconfigurations")

FAILURE_POLICIES = ("Fail", "Ignore")
MATCH_POLICIES = ("Equivalent", "Exact")
REINVOCATIONS = ("IfNeeded", "Never")
_SIDE_EFFECTS = ("None", "NoneOnDryRun")
REVIEW_VERSIONS = ("v1", "v1beta1")
_SCOPES = ("*", "Cluster", "Namespaced")
_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
_MAX_MATCH_CONDITIONS = 64

# -- rules that webhooks and policies share ---------------------------------------------------------------------------


def rule_with_operations(errors: Errors, path: str, rule: Mapping[str, Any]) -> None:
    operations = rule.get("operations") or ()
    if not operations:
        errors.append(required(f"{path}.operations"))
    if len(operations) > 1 and "*" in operations:
        text = "if '*' is present, must not specify other operations"
        errors.append(invalid_value(f"{path}.operations", operations, text))
    for i, operation in enumerate(operations):
        if operation not in _OPERATIONS:
            errors.append(not_supported(f"{path}.operations[{i}]", operation, _OPERATIONS))
    for field, words in (("apiGroups", "API groups"), ("apiVersions", "API versions")):
        found = rule.get(field) or ()
        if not found:
            errors.append(required(f"{path}.{field}"))
        if len(found) > 1 and "*" in found:
            errors.append(invalid_value(f"{path}.{field}", found, f"if '*' is present, must not specify other {words}"))
    for i, version in enumerate(rule.get("apiVersions") or ()):
        if not version:
            errors.append(required(f"{path}.apiVersions[{i}]"))
    _resources(errors, f"{path}.resources", rule.get("resources") or ())
    if rule.get("scope") is not None and rule["scope"] not in _SCOPES:
        errors.append(not_supported(f"{path}.scope", rule["scope"], _SCOPES))


def _resources(errors: Errors, path: str, resources: Sequence[str]) -> None:
    """ "pods", "pods/status", "*", "*/scale", "*/*" and what they exclude beside them."""
    if not resources:
        errors.append(required(path))
    wildcard_subs: set[str] = set()  # of "*/sub"
    wildcard_resources: set[str] = set()  # of "resource/*"
    plain = False
    for i, each in enumerate(resources):
        if not each:
            errors.append(required(f"{path}[{i}]"))
            continue
        resource, slash, sub = each.partition("/")
        if not slash:
            plain = each != "*"
            continue
        if resource in wildcard_resources:
            text = f"if '{resource}/*' is present, must not specify {each}"
            errors.append(invalid_value(f"{path}[{i}]", each, text))
        if sub in wildcard_subs:
            text = f"if '*/{sub}' is present, must not specify {each}"
            errors.append(invalid_value(f"{path}[{i}]", each, text))
        if sub == "*":
            wildcard_resources.add(resource)
        if resource == "*":
            wildcard_subs.add(sub)
    if len(resources) > 1 and "*/*" in resources:
        errors.append(invalid_value(path, resources, "if '*/*' is present, must not specify other resources"))
    if "*" in resources and plain:
        text = "if '*' is present, must not specify other resources without subresources"
        errors.append(invalid_value(path, resources, text))


def match_conditions(
    errors: Errors, path: str, found: Sequence[Mapping[str, Any]], compile_: Callable[[str], Any]
) -> None:
    if len(found) > _MAX_MATCH_CONDITIONS:
        errors.append(FieldError("FieldValueTooMany", path, f"{len(found)}: must have at most 64 items"))
        return
    seen: set[str] = set()
    for i, condition in enumerate(found):
        name, expression = condition.get("name", ""), condition.get("expression", "").strip()
        if not expression:
            errors.append(required(f"{path}[{i}].expression"))
        elif text := finding(compile_, expression):
            errors.append(invalid_value(f"{path}[{i}].expression", condition["expression"], text))
        if not name:
            errors.append(required(f"{path}[{i}].name"))
            continue
        check(errors, f"{path}[{i}].name", name, is_qualified_name(name))
        if name in seen:
            errors.append(duplicate(f"{path}[{i}].name", name))
        seen.add(name)


def choice(errors: Errors, path: str, value: str | None, supported: Sequence[str]) -> None:
    if value is not None and value not in supported:
        errors.append(not_supported(path, value, supported))


def default_match(part: Object) -> None:
    if part.get("matchPolicy") is None:
        part["matchPolicy"] = "Equivalent"
    for field in ("namespaceSelector", "objectSelector"):
        if part.get(field) is None:
            part[field] = {}


def default_scopes(rules: Iterable[Object]) -> None:
    for rule in rules:
        if rule.get("scope") is None:
            rule["scope"] = "*"


# -- webhooks ---------------------------------------------------------------------------------------------------------


class _Webhooks(Strategy):
    kube_finalizers = False

    def __init__(self, *, mutating: bool) -> None:
        self.mutating = mutating

    def default(self, obj: Object) -> None:
        for hook in obj.get("webhooks") or ():
            if hook.get("failurePolicy") is None:
                hook["failurePolicy"] = "Fail"
            default_match(hook)
            if hook.get("timeoutSeconds") is None:
                hook["timeoutSeconds"] = 10
            if self.mutating and hook.get("reinvocationPolicy") is None:
                hook["reinvocationPolicy"] = "Never"
            default_scopes(hook.get("rules") or ())
            service = dig(hook, "clientConfig", "service")
            if service is not None and service.get("port") is None:
                service["port"] = 443

    def prepare(self, obj: Object, old: Object | None, *, user: Any) -> None:
        if old is None:
            obj["metadata"]["generation"] = 1
        elif (obj.get("webhooks") or []) != (old.get("webhooks") or []):
            obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        seen: set[str] = set()
        for i, hook in enumerate(obj.get("webhooks") or ()):
            path, name = f"webhooks[{i}]", hook.get("name", "")
            self._hook(errors, path, hook)
            taken = hook.get("admissionReviewVersions") or ()
            if not taken:
                why = f"must specify one of {', '.join(REVIEW_VERSIONS)}"
                errors.append(required(f"{path}.admissionReviewVersions", why))
            else:
                review_versions(errors, f"{path}.admissionReviewVersions", taken)
            if name and name in seen:
                errors.append(duplicate(f"{path}.name", name))
            seen.add(name)
        return errors

    def _hook(self, errors: Errors, path: str, hook: Mapping[str, Any]) -> None:
        name = hook.get("name", "")
        if name:
            check(errors, f"{path}.name", name, is_fully_qualified_name(name))
        else:
            errors.append(required(f"{path}.name"))
        for i, rule in enumerate(hook.get("rules") or ()):
            rule_with_operations(errors, f"{path}.rules[{i}]", rule)
        choice(errors, f"{path}.failurePolicy", hook.get("failurePolicy"), FAILURE_POLICIES)
        choice(errors, f"{path}.matchPolicy", hook.get("matchPolicy"), MATCH_POLICIES)
        if hook.get("sideEffects") is None:
            errors.append(required(f"{path}.sideEffects", f"must specify one of {', '.join(_SIDE_EFFECTS)}"))
        choice(errors, f"{path}.sideEffects", hook.get("sideEffects"), _SIDE_EFFECTS)
        seconds = hook.get("timeoutSeconds")
        if seconds is not None and not 1 <= seconds <= 30:
            text = "the timeout value must be between 1 and 30 seconds"
            errors.append(invalid_value(f"{path}.timeoutSeconds", seconds, text))
        for field in ("namespaceSelector", "objectSelector"):
            label_selector(errors, f"{path}.{field}", hook.get(field))
        if self.mutating:
            choice(errors, f"{path}.reinvocationPolicy", hook.get("reinvocationPolicy"), REINVOCATIONS)
        _client_config(errors, f"{path}.clientConfig", hook.get("clientConfig") or {})
        if hook.get("matchConditions"):
            match_conditions(errors, f"{path}.matchConditions", hook["matchConditions"], Expressions({}).condition)


def review_versions(errors: Errors, path: str, versions: Sequence[str], *, recognized: bool = True) -> None:
    """Which versions of a review a webhook takes; one must be `recognized`."""
    for i, version in enumerate(versions):
        if version in versions[:i]:
            errors.append(invalid_value(f"{path}[{i}]", version, "duplicate version"))
        else:
            check(errors, f"{path}[{i}]", version, is_dns1035_label(version))
    if recognized and not set(versions) & set(REVIEW_VERSIONS):
        why = f"must include at least one of {', '.join(REVIEW_VERSIONS)}"
        errors.append(invalid_value(path, versions, why))


def _client_config(errors: Errors, path: str, config: Mapping[str, Any]) -> None:
    url, service = config.get("url"), config.get("service")
    if (url is None) == (service is None):
        errors.append(required(path, "exactly one of url or service is required"))
    elif url is not None:
        webhook_url(errors, f"{path}.url", url)
    else:
        webhook_service(errors, f"{path}.service", service or {})


def webhook_url(errors: Errors, path: str, text: str) -> None:
    """Where a webhook is asked: https, a host, nothing that could leak."""
    form = "; desired format: https://host[/path]"
    try:
        url = urlsplit(text)
        host = url.netloc.rpartition("@")[2]
    except ValueError as error:
        errors.append(required(path, f"url must be a valid URL: {error}{form}"))
        return
    if url.scheme != "https":
        errors.append(invalid_value(path, url.scheme, f"'https' is the only allowed URL scheme{form}"))
    if not host:
        errors.append(invalid_value(path, "", f"host must be specified{form}"))
    if "@" in url.netloc:
        shown = url.netloc.rpartition("@")[0]
        errors.append(invalid_value(path, shown, "user information is not permitted in the URL"))
    if url.fragment:
        errors.append(invalid_value(path, url.fragment, "fragments are not permitted in the URL"))
    if url.query:
        errors.append(invalid_value(path, url.query, "query parameters are not permitted in the URL"))


def webhook_service(errors: Errors, path: str, service: Mapping[str, Any]) -> None:
    # Upstream hands name and namespace over in the wrong order, so each misses under the other's name.
    for field, other in (("name", "namespace"), ("namespace", "name")):
        if not service.get(other):
            errors.append(required(f"{path}.{field}"))
    texts = is_valid_port_num(service.get("port", 443))
    if texts:
        errors.append(invalid_value(f"{path}.port", service["port"], f"port is not valid: {', '.join(texts)}"))
    url = service.get("path")
    if url is None or url in ("", "/"):
        return
    if url == "//":
        errors.append(invalid_value(f"{path}.path", url, "segment[0] may not be empty"))
        return
    if not url.startswith("/"):
        errors.append(invalid_value(f"{path}.path", url, "must start with a '/'"))
    for i, step in enumerate(url[1:].removesuffix("/").split("/")):
        texts = [f"segment[{i}]: {text}" for text in is_dns1123_subdomain(step)] if step else []
        check(errors, f"{path}.path", url, texts if step else [f"segment[{i}] may not be empty"])


def count(name: str, *path: str) -> Column:
    """How many items a list has."""
    return Column(name, lambda obj, now: len(dig(obj, *path, default=())), type="integer")


def _webhooks(gvr: GVR, kind: str, *, mutating: bool) -> Resource:
    columns = (NAME, count("Webhooks", "webhooks"), AGE)
    return Resource(gvr, kind, _Webhooks(mutating=mutating), namespaced=False, categories=CATEGORIES, columns=columns)


RESOURCES: Sequence[Resource] = (
    _webhooks(MUTATINGWEBHOOKCONFIGURATIONS, "MutatingWebhookConfiguration", mutating=True),
    _webhooks(VALIDATINGWEBHOOKCONFIGURATIONS, "ValidatingWebhookConfiguration", mutating=False),
)
