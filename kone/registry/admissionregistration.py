"""admissionregistration.k8s.io: webhooks and policies that admission asks.

What CEL expressions say is judged where they are compiled; here is everything else about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import (
    is_dns1035_label,
    is_dns1123_subdomain,
    is_fully_qualified_name,
    is_qualified_name,
    is_valid_port_num,
)
from kone.apimachinery.objects import Object, dig
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check, label_selector
from kone.registry.strategy import SpecStrategy, StatusStrategy, Strategy

GROUP = "admissionregistration.k8s.io"
MUTATINGADMISSIONPOLICIES = GVR(GROUP, "v1", "mutatingadmissionpolicies")
MUTATINGADMISSIONPOLICYBINDINGS = GVR(GROUP, "v1", "mutatingadmissionpolicybindings")
MUTATINGWEBHOOKCONFIGURATIONS = GVR(GROUP, "v1", "mutatingwebhookconfigurations")
VALIDATINGADMISSIONPOLICIES = GVR(GROUP, "v1", "validatingadmissionpolicies")
VALIDATINGADMISSIONPOLICYBINDINGS = GVR(GROUP, "v1", "validatingadmissionpolicybindings")
VALIDATINGWEBHOOKCONFIGURATIONS = GVR(GROUP, "v1", "validatingwebhookconfigurations")

_FAILURE_POLICIES = ("Fail", "Ignore")
_MATCH_POLICIES = ("Equivalent", "Exact")
_REINVOCATIONS = ("IfNeeded", "Never")
_SIDE_EFFECTS = ("None", "NoneOnDryRun")
REVIEW_VERSIONS = ("v1", "v1beta1")
_SCOPES = ("*", "Cluster", "Namespaced")
_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
_MAX_MATCH_CONDITIONS = 64

# -- rules that webhooks and policies share ---------------------------------------------------------------------------


def _rule_with_operations(errors: Errors, path: str, rule: Mapping[str, Any]) -> None:
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


def _match_conditions(errors: Errors, path: str, found: Sequence[Mapping[str, Any]]) -> None:
    if len(found) > _MAX_MATCH_CONDITIONS:
        errors.append(FieldError("FieldValueTooMany", path, f"{len(found)}: must have at most 64 items"))
        return
    seen: set[str] = set()
    for i, condition in enumerate(found):
        name, expression = condition.get("name", ""), condition.get("expression", "").strip()
        if not expression:
            errors.append(required(f"{path}[{i}].expression"))
        if not name:
            errors.append(required(f"{path}[{i}].name"))
            continue
        check(errors, f"{path}[{i}].name", name, is_qualified_name(name))
        if name in seen:
            errors.append(duplicate(f"{path}[{i}].name", name))
        seen.add(name)


def _choice(errors: Errors, path: str, value: str | None, supported: Sequence[str]) -> None:
    if value is not None and value not in supported:
        errors.append(not_supported(path, value, supported))


def _default_match(part: Object) -> None:
    if part.get("matchPolicy") is None:
        part["matchPolicy"] = "Equivalent"
    for field in ("namespaceSelector", "objectSelector"):
        if part.get(field) is None:
            part[field] = {}


def _default_scopes(rules: Iterable[Object]) -> None:
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
            _default_match(hook)
            if hook.get("timeoutSeconds") is None:
                hook["timeoutSeconds"] = 10
            if self.mutating and hook.get("reinvocationPolicy") is None:
                hook["reinvocationPolicy"] = "Never"
            _default_scopes(hook.get("rules") or ())
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
            _rule_with_operations(errors, f"{path}.rules[{i}]", rule)
        _choice(errors, f"{path}.failurePolicy", hook.get("failurePolicy"), _FAILURE_POLICIES)
        _choice(errors, f"{path}.matchPolicy", hook.get("matchPolicy"), _MATCH_POLICIES)
        if hook.get("sideEffects") is None:
            errors.append(required(f"{path}.sideEffects", f"must specify one of {', '.join(_SIDE_EFFECTS)}"))
        _choice(errors, f"{path}.sideEffects", hook.get("sideEffects"), _SIDE_EFFECTS)
        seconds = hook.get("timeoutSeconds")
        if seconds is not None and not 1 <= seconds <= 30:
            text = "the timeout value must be between 1 and 30 seconds"
            errors.append(invalid_value(f"{path}.timeoutSeconds", seconds, text))
        for field in ("namespaceSelector", "objectSelector"):
            label_selector(errors, f"{path}.{field}", hook.get(field))
        if self.mutating:
            _choice(errors, f"{path}.reinvocationPolicy", hook.get("reinvocationPolicy"), _REINVOCATIONS)
        _client_config(errors, f"{path}.clientConfig", hook.get("clientConfig") or {})
        _match_conditions(errors, f"{path}.matchConditions", hook.get("matchConditions") or ())


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


# -- policies ---------------------------------------------------------------------------------------------------------


class _Policy(SpecStrategy):
    constraints = "matchConstraints"

    def __init__(self, *, mutating: bool) -> None:
        self.mutating = mutating
        self.has_status = not mutating

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        if spec.get("failurePolicy") is None:
            spec["failurePolicy"] = "Fail"
        _default_constraints(spec.get(self.constraints))

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        _choice(errors, "spec.failurePolicy", spec.get("failurePolicy"), _FAILURE_POLICIES)
        if spec.get("paramKind") is not None:
            _param_kind(errors, "spec.paramKind", spec["paramKind"])
        if spec.get(self.constraints) is None:
            errors.append(required(f"spec.{self.constraints}"))
        else:
            _constraints(errors, f"spec.{self.constraints}", spec[self.constraints], need_rules=True)
        _match_conditions(errors, "spec.matchConditions", spec.get("matchConditions") or ())
        if self.mutating:
            _mutations(errors, "spec", spec)
        elif not spec.get("validations") and not spec.get("auditAnnotations"):
            text = "validations or auditAnnotations must be non-empty"
            errors.append(required("spec.validations", f"{text}; at least one must be specified"))
            errors.append(required("spec.auditAnnotations", f"{text}; at least one must be specified"))
        return errors


def _default_constraints(match: Object | None) -> None:
    if match is not None:
        _default_match(match)
        for field in ("resourceRules", "excludeResourceRules"):
            _default_scopes(match.get(field) or ())


def _param_kind(errors: Errors, path: str, kind: Mapping[str, Any]) -> None:
    version, name = kind.get("apiVersion", ""), kind.get("kind", "")
    if not version:
        errors.append(required(f"{path}.apiVersion"))
    if not name:
        errors.append(required(f"{path}.kind"))


def _constraints(errors: Errors, path: str, match: Mapping[str, Any], *, need_rules: bool) -> None:
    _choice(errors, f"{path}.matchPolicy", match.get("matchPolicy"), _MATCH_POLICIES)
    for field in ("namespaceSelector", "objectSelector"):
        label_selector(errors, f"{path}.{field}", match.get(field))
    for field in ("resourceRules", "excludeResourceRules"):
        for i, rule in enumerate(match.get(field) or ()):
            _rule_with_operations(errors, f"{path}.{field}[{i}]", rule)
    if need_rules and not match.get("resourceRules"):
        errors.append(required(f"{path}.resourceRules"))


def _mutations(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    if not spec.get("mutations"):
        errors.append(required(f"{path}.mutations"))
    _choice(errors, f"{path}.reinvocationPolicy", spec.get("reinvocationPolicy") or None, _REINVOCATIONS)


class _Binding(Strategy):
    def __init__(self, *, mutating: bool) -> None:
        self.mutating = mutating

    def default(self, obj: Object) -> None:
        _default_constraints(obj["spec"].get("matchResources"))

    def prepare(self, obj: Object, old: Object | None, *, user: Any) -> None:
        if old is None:
            obj["metadata"]["generation"] = 1
        elif obj["spec"] != old["spec"]:
            obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        name = spec.get("policyName", "")
        if name:
            check(errors, "spec.policyName", name, is_dns1123_subdomain(name))
        else:
            errors.append(required("spec.policyName"))
        if spec.get("paramRef") is not None:
            _param_ref(errors, "spec.paramRef", spec["paramRef"])
        if spec.get("matchResources") is not None:
            _constraints(errors, "spec.matchResources", spec["matchResources"], need_rules=False)
        if not self.mutating:
            _actions(errors, "spec.validationActions", spec.get("validationActions") or ())
        return errors


_ACTIONS = ("Audit", "Deny", "Warn")


def _actions(errors: Errors, path: str, actions: Sequence[str]) -> None:
    for i, action in enumerate(actions):
        if action not in _ACTIONS:
            errors.append(not_supported(f"{path}[{i}]", action, _ACTIONS))
        if action in actions[:i]:
            errors.append(duplicate(f"{path}[{i}]", action))
    if {"Deny", "Warn"} <= set(actions):
        text = "must not contain both Deny and Warn (repeating the same validation failure information in the API "
        errors.append(invalid_value(path, actions, f"{text}response and headers serves no purpose)"))
    if not actions:
        errors.append(required(path, "at least one validation action is required"))


def _param_ref(errors: Errors, path: str, ref: Mapping[str, Any]) -> None:
    name, selector = ref.get("name", ""), ref.get("selector")
    if name:
        check(errors, f"{path}.name", name, is_dns1123_subdomain(name))
        if selector is not None:
            errors.append(forbidden_field(f"{path}.name", "name and selector are mutually exclusive"))
    if selector is not None:
        label_selector(errors, f"{path}.selector", selector)
        if name:
            errors.append(forbidden_field(f"{path}.selector", "name and selector are mutually exclusive"))
    if not name and selector is None:
        errors.append(required(path, "one of name or selector must be specified"))
    action = ref.get("parameterNotFoundAction")
    if action is None:
        errors.append(required(f"{path}.parameterNotFoundAction"))
    else:
        _choice(errors, f"{path}.parameterNotFoundAction", action, ("Deny", "Allow"))


def _kind_cell(obj: Object, now: float) -> str:
    kind = dig(obj, "spec", "paramKind")
    return "<unset>" if kind is None else f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}"


def _ref_cell(obj: Object, now: float) -> str:
    ref = dig(obj, "spec", "paramRef")
    if ref is None:
        return "<unset>"
    return f"{ref['namespace']}/{ref.get('name', '')}" if ref.get("namespace") else str(ref.get("name") or "*")


def _count(name: str, *path: str) -> Column:
    return Column(name, lambda obj, now: len(dig(obj, *path, default=())), type="integer")


def _policy(gvr: GVR, kind: str, counted: Column, strategy: Strategy, status: StatusStrategy | None) -> Resource:
    columns = (NAME, counted, Column("ParamKind", _kind_cell), AGE)
    return Resource(gvr, kind, strategy, namespaced=False, categories=_CATEGORIES, columns=columns, status=status)


def _binding(gvr: GVR, kind: str, *, mutating: bool) -> Resource:
    name = Column("PolicyName", lambda obj, now: dig(obj, "spec", "policyName", default=""))
    columns = (NAME, name, Column("ParamRef", _ref_cell), AGE)
    return Resource(gvr, kind, _Binding(mutating=mutating), namespaced=False, categories=_CATEGORIES, columns=columns)


def _webhooks(gvr: GVR, kind: str, *, mutating: bool) -> Resource:
    columns = (NAME, _count("Webhooks", "webhooks"), AGE)
    return Resource(gvr, kind, _Webhooks(mutating=mutating), namespaced=False, categories=_CATEGORIES, columns=columns)


_CATEGORIES = ("api-extensions",)
_validating = _Policy(mutating=False)

RESOURCES: Sequence[Resource] = (
    _policy(
        MUTATINGADMISSIONPOLICIES,
        "MutatingAdmissionPolicy",
        _count("Mutations", "spec", "mutations"),
        _Policy(mutating=True),
        None,
    ),
    _binding(MUTATINGADMISSIONPOLICYBINDINGS, "MutatingAdmissionPolicyBinding", mutating=True),
    _webhooks(MUTATINGWEBHOOKCONFIGURATIONS, "MutatingWebhookConfiguration", mutating=True),
    _policy(
        VALIDATINGADMISSIONPOLICIES,
        "ValidatingAdmissionPolicy",
        _count("Validations", "spec", "validations"),
        _validating,
        StatusStrategy(_validating),
    ),
    _binding(VALIDATINGADMISSIONPOLICYBINDINGS, "ValidatingAdmissionPolicyBinding", mutating=False),
    _webhooks(VALIDATINGWEBHOOKCONFIGURATIONS, "ValidatingWebhookConfiguration", mutating=False),
)
