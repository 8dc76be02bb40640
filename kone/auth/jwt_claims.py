"""From the claims of a verified token to a user, as a jwt authenticator of an AuthenticationConfiguration says.

    rules, errors = compile_rules({"claimMappings": {"username": {"claim": "sub", "prefix": "acme:"}}}, "jwt[0]")
    rules.user({"sub": "ann"}).name      # "acme:ann"

Pure: no time, no network. Source: k8s.io/apiserver, plugin/pkg/authenticator/token/oidc and apis/apiserver/validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kone.apimachinery.cel import (
    BOOL,
    DYN,
    STRING,
    CelError,
    CelSyntaxError,
    Environment,
    FieldTable,
    Program,
    list_of,
    map_of,
    struct_type,
)
from kone.apimachinery.cel_syntax import Ident, Select
from kone.apimachinery.errors import FieldError, duplicate, go_quote, invalid_value, required
from kone.apimachinery.names import is_domain_prefixed_path
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.auth.authentication import CREDENTIAL_ID, with_authenticated

_USER: Final = "kubernetes.UserInfo"
_USER_FIELDS: Final = {
    "username": STRING,
    "uid": STRING,
    "groups": list_of(STRING),
    "extra": map_of(STRING, list_of(STRING)),
}
_CLAIMS: Final = Environment({"claims": map_of(STRING, DYN)})
_USERS: Final = Environment({"user": struct_type(_USER)}, structs=FieldTable({_USER: _USER_FIELDS}))
_STRINGS: Final = "expression must return a string or a list of strings"
_VERIFIED: Final = (
    "claims.email_verified must be used in claimMappings.username.expression or "
    "claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in "
    "claimMappings.username.expression"
)


@dataclass(slots=True)
class Mapped:
    """Where something of the user comes from: a claim with a prefix, or an expression; neither: nowhere."""

    claim: str = ""
    prefix: str = ""
    program: Program | None = None


@dataclass(slots=True)
class Rule:
    """An expression that must be true, and what is said where it is not."""

    program: Program
    message: str


@dataclass(slots=True)
class ClaimRules:
    username: Mapped = field(default_factory=Mapped)
    groups: Mapped = field(default_factory=Mapped)
    uid: Mapped = field(default_factory=Mapped)
    extra: dict[str, Program] = field(default_factory=dict)
    required: dict[str, str] = field(default_factory=dict)
    claim_rules: list[Rule] = field(default_factory=list)
    user_rules: list[Rule] = field(default_factory=list)

    def user(self, claims: Mapping[str, Any]) -> User:
        """Raises ValueError, in upstream's words, where the claims do not make one."""
        name = self._username(claims)
        groups = self._groups(claims)
        uid = self._uid(claims)
        extra: dict[str, tuple[str, ...]] = {}
        if isinstance(jti := claims.get("jti"), str) and jti:
            extra[CREDENTIAL_ID] = (f"JTI={jti}",)
        for key, program in self.extra.items():
            if values := _strings(_evaluated(program, "claims", claims, "extra claim expression"), "extra"):
                extra[key] = values
        self._check_claims(claims)
        user = User(name, uid, groups, extra)
        shown: Object = {
            "username": name,
            "uid": uid,
            "groups": list(groups),
            "extra": {key: list(values) for key, values in extra.items()},
        }
        _check(self.user_rules, "user", shown, "user info validation rule")
        return User(user.name, user.uid, with_authenticated(user.groups), user.extra)

    def _username(self, claims: Mapping[str, Any]) -> str:
        if self.username.program is not None:
            found = _evaluated(self.username.program, "claims", claims, "username claim expression")
            if not isinstance(found, str):
                raise ValueError(
                    "oidc: error evaluating username claim expression: username claim expression must return a string"
                )
            if not found:
                raise ValueError("oidc: empty username via CEL expression is not allowed")
            return found
        claim = self.username.claim
        name = _text(claims, claim, f"username claims {go_quote(claim)}")
        if claim == "email" and "email_verified" in claims:
            verified = claims["email_verified"]
            if not isinstance(verified, bool):
                raise ValueError("oidc: parse 'email_verified' claim: it is no boolean")
            if not verified:
                raise ValueError("oidc: email not verified")
        return self.username.prefix + name

    def _groups(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        claim = self.groups.claim
        if claim and claim in claims:
            found = claims[claim]
            listed = [found] if isinstance(found, str) else found
            if not isinstance(listed, list) or not all(isinstance(group, str) for group in listed):
                raise ValueError(f"oidc: parse groups claim {go_quote(claim)}: it is no string or list of strings")
            return tuple(self.groups.prefix + group for group in listed)
        if self.groups.program is None:
            return ()
        return _strings(_evaluated(self.groups.program, "claims", claims, "group claim expression"), "group")

    def _uid(self, claims: Mapping[str, Any]) -> str:
        if self.uid.claim:
            return _text(claims, self.uid.claim, f"uid claim {go_quote(self.uid.claim)}")
        if self.uid.program is None:
            return ""
        found = _evaluated(self.uid.program, "claims", claims, "uid claim expression")
        if not isinstance(found, str):
            raise ValueError("oidc: error evaluating uid claim expression: uid claim expression must return a string")
        return found

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        for claim, wanted in self.required.items():
            if claim not in claims:
                raise ValueError(f"oidc: required claim {claim} not present in ID token")
            found = _text(claims, claim, f"claim {claim}")
            if found != wanted:
                raise ValueError(f"oidc: required claim {claim} value does not match. Got = {found}, want = {wanted}")
        _check(self.claim_rules, "claims", claims, "claim validation expression")


def _text(claims: Mapping[str, Any], claim: str, what: str) -> str:
    if claim not in claims:
        raise ValueError(f"oidc: parse {what}: claim not present")
    found = claims[claim]
    if not isinstance(found, str):
        raise ValueError(f"oidc: parse {what}: it is no string")
    return found


def _evaluated(program: Program, name: str, value: Mapping[str, Any], what: str) -> Any:
    try:
        return program.evaluate({name: value}).value
    except CelError as error:
        shown = f"expression '{program.source}' resulted in error: {error}"
        raise ValueError(f"oidc: error evaluating {what}: {shown}") from None


def _strings(found: Any, what: str) -> tuple[str, ...]:
    if found is None or found == "":
        return ()
    if isinstance(found, str):
        return (found,)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"oidc: error evaluating {what} claim expression: {_STRINGS}")
    return tuple(each for each in found if each)


def _check(rules: Sequence[Rule], name: str, value: Mapping[str, Any], what: str) -> None:
    for rule in rules:
        if _evaluated(rule.program, name, value, what) is not True:
            shown = f"validation expression '{rule.program.source}' failed: {rule.message}"
            raise ValueError(f"oidc: error evaluating {what}: {shown}")


# -- reading the configuration -----------------------------------------------------------------------------------------


def compile_rules(config: Mapping[str, Any], path: str) -> tuple[ClaimRules, list[FieldError]]:
    """The rules of one entry of `jwt`, and what is wrong with them."""
    rules, errors = ClaimRules(), _Errors()
    _claim_validation(rules, config.get("claimValidationRules") or (), f"{path}.claimValidationRules", errors)
    mappings = config.get("claimMappings") or {}
    at = f"{path}.claimMappings"
    rules.username = _prefixed(mappings.get("username") or {}, f"{at}.username", errors, needed=True)
    rules.groups = _prefixed(mappings.get("groups") or {}, f"{at}.groups", errors, needed=False)
    rules.uid = _uid_mapping(mappings.get("uid") or {}, f"{at}.uid", errors)
    _extra(rules, mappings.get("extra") or (), f"{at}.extra", errors)
    if rules.username.program is not None and _reads(rules.username.program, "email"):
        programs = [rules.username.program, *rules.extra.values(), *(rule.program for rule in rules.claim_rules)]
        if not any(_reads(program, "email_verified") for program in programs):
            errors.add(invalid_value(f"{at}.username.expression", rules.username.program.source, _VERIFIED))
    seen: set[str] = set()
    for i, rule in enumerate(config.get("userValidationRules") or ()):
        where, source = f"{path}.userValidationRules[{i}].expression", rule.get("expression", "")
        if not source:
            errors.add(required(where))
        elif source in seen:
            errors.add(duplicate(where, source))
        elif (program := errors.compiled(_USERS, source, where, boolean=True)) is not None:
            rules.user_rules.append(Rule(program, rule.get("message", "")))
        seen.add(source)
    return rules, errors.found


class _Errors:
    def __init__(self) -> None:
        self.found: list[FieldError] = []

    def add(self, error: FieldError) -> None:
        self.found.append(error)

    def compiled(self, environment: Environment, source: str, path: str, *, boolean: bool = False) -> Program | None:
        try:
            program = environment.compile(source)
        except CelSyntaxError as error:
            self.add(invalid_value(path, source, f"compilation failed: {error}"))
            return None
        if boolean and program.type != BOOL:
            self.add(invalid_value(path, source, "must evaluate to bool"))
            return None
        return program


def _claim_validation(rules: ClaimRules, given: Sequence[Mapping[str, Any]], path: str, errors: _Errors) -> None:
    seen_claims: set[str] = set()
    seen_expressions: set[str] = set()
    for i, rule in enumerate(given):
        at = f"{path}[{i}]"
        claim, source = rule.get("claim", ""), rule.get("expression", "")
        message, value = rule.get("message", ""), rule.get("requiredValue", "")
        if claim and source:
            errors.add(invalid_value(at, claim, "claim and expression can't both be set"))
        elif not claim and not source:
            errors.add(required(at, "claim or expression is required"))
        elif claim:
            if message:
                errors.add(invalid_value(f"{at}.message", message, "may not be specified when claim is set"))
            if claim in seen_claims:
                errors.add(duplicate(f"{at}.claim", claim))
            seen_claims.add(claim)
            rules.required[claim] = value
        else:
            if value:
                errors.add(invalid_value(f"{at}.requiredValue", value, "may not be specified when expression is set"))
            if source in seen_expressions:
                errors.add(duplicate(f"{at}.expression", source))
                continue
            seen_expressions.add(source)
            program = errors.compiled(_CLAIMS, source, f"{at}.expression", boolean=True)
            if program is not None:
                rules.claim_rules.append(Rule(program, message))


def _prefixed(mapping: Mapping[str, Any], path: str, errors: _Errors, *, needed: bool) -> Mapped:
    claim, source, prefix = mapping.get("claim", ""), mapping.get("expression", ""), mapping.get("prefix")
    if claim and source:
        errors.add(invalid_value(path, "", "claim and expression can't both be set"))
    elif source:
        if prefix is not None:
            errors.add(invalid_value(f"{path}.prefix", prefix, "may not be specified when expression is set"))
        return Mapped(program=errors.compiled(_CLAIMS, source, f"{path}.expression"))
    elif claim:
        if prefix is None:
            why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing"
            errors.add(required(f"{path}.prefix", why))
    elif needed:
        errors.add(required(path, "claim or expression is required"))
    return Mapped(claim, prefix or "")


def _uid_mapping(mapping: Mapping[str, Any], path: str, errors: _Errors) -> Mapped:
    claim, source = mapping.get("claim", ""), mapping.get("expression", "")
    if claim and source:
        errors.add(invalid_value(path, "", "claim and expression can't both be set"))
    elif source:
        return Mapped(program=errors.compiled(_CLAIMS, source, f"{path}.expression"))
    return Mapped(claim)


def _extra(rules: ClaimRules, given: Sequence[Mapping[str, Any]], path: str, errors: _Errors) -> None:
    seen: set[str] = set()
    for i, mapping in enumerate(given):
        key, source, at = mapping.get("key", ""), mapping.get("valueExpression", ""), f"{path}[{i}]"
        for error in _key_errors(key, f"{at}.key"):
            errors.add(error)
        if key in seen:
            errors.add(duplicate(f"{at}.key", key))
            continue
        seen.add(key)
        if not source:
            errors.add(required(f"{at}.valueExpression"))
        elif (program := errors.compiled(_CLAIMS, source, f"{at}.valueExpression")) is not None:
            rules.extra[key] = program


def _key_errors(key: str, path: str) -> Iterator[FieldError]:
    for why in is_domain_prefixed_path(key):
        yield invalid_value(path, key, why)
    domain = key.partition("/")[0]
    if key != key.lower():
        yield invalid_value(path, key, "must be lowercase")
    if domain in ("kubernetes.io", "k8s.io") or domain.endswith((".kubernetes.io", ".k8s.io")):
        why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"
        yield invalid_value(path, key, why)


def _reads(program: Program, claim: str) -> bool:
    """Whether an expression selects a claim."""
    return any(
        isinstance(node, Select)
        and node.field == claim
        and isinstance(node.operand, Ident)
        and node.operand.name == "claims"
        for node in program.nodes()
    )
