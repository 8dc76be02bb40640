"""Files of kind AuthenticationConfiguration (apiserver.config.k8s.io): whose tokens are believed, and who may come
without any.

Source: k8s.io/apiserver, apis/apiserver/validation.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from kone.apimachinery import config_files
from kone.apimachinery.errors import FieldError, duplicate, invalid_value, required, too_many
from kone.auth.authentication import Anonymous
from kone.auth.jwt_claims import ClaimRules, compile_rules

API_VERSIONS: Final = (
    "apiserver.config.k8s.io/v1",
    "apiserver.config.k8s.io/v1beta1",
    "apiserver.config.k8s.io/v1alpha1",
)
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512")
MAX_ISSUERS: Final = 64
_SHAPE: Final = {
    "jwt": [
        {
            "issuer": {
                "url": str,
                "discoveryURL": str,
                "certificateAuthority": str,
                "audiences": [str],
                "audienceMatchPolicy": str,
                "egressSelectorType": str,
            },
            "claimValidationRules": [{"claim": str, "requiredValue": str, "expression": str, "message": str}],
            "claimMappings": {
                "username": {"claim": str, "prefix": str, "expression": str},
                "groups": {"claim": str, "prefix": str, "expression": str},
                "uid": {"claim": str, "expression": str},
                "extra": [{"key": str, "valueExpression": str}],
            },
            "userValidationRules": [{"expression": str, "message": str}],
        }
    ],
    "anonymous": {"enabled": bool, "conditions": [{"path": str}]},
}


@dataclass(frozen=True, slots=True)
class Issuer:
    """A provider of tokens, and what its claims make. `discovery_url` is where it says of itself; `ca_pem` "" means
    the host's CAs."""

    url: str
    audiences: tuple[str, ...]
    rules: ClaimRules
    discovery_url: str
    ca_pem: str = ""
    algorithms: tuple[str, ...] = ALGORITHMS


@dataclass(frozen=True, slots=True)
class AuthenticationConfig:
    """`anonymous` is None where the file does not say."""

    issuers: tuple[Issuer, ...] = ()
    anonymous: Anonymous | None = None


def parse_config(text: str, disallowed: Sequence[str] = ()) -> AuthenticationConfig:
    """`disallowed` issuers are the server's own. Raises ValueError."""
    found = config_files.load(text, "AuthenticationConfiguration", API_VERSIONS, _SHAPE)
    given: list[Mapping[str, Any]] = found.get("jwt") or []
    errors: list[FieldError] = []
    issuers: list[Issuer] = []
    if len(given) > MAX_ISSUERS:
        errors.append(too_many("jwt", len(given), MAX_ISSUERS))
    else:
        errors += _duplicates(given)
        for i, one in enumerate(given):
            issuer, wrong = issuer_of(one, f"jwt[{i}]", disallowed)
            errors += wrong
            issuers.append(issuer)
    anonymous = found.get("anonymous")
    conditions = (anonymous or {}).get("conditions") or ()
    if anonymous is not None and not anonymous.get("enabled") and conditions:
        why = "enabled should be set to true when conditions are defined"
        errors.append(invalid_value("anonymous.conditions", list(conditions), why))
    config_files.refuse(errors)
    return AuthenticationConfig(
        tuple(issuers),
        None
        if anonymous is None
        else Anonymous(bool(anonymous.get("enabled")), frozenset(each.get("path", "") for each in conditions)),
    )


def issuer_of(config: Mapping[str, Any], path: str, disallowed: Sequence[str] = ()) -> tuple[Issuer, list[FieldError]]:
    """One entry of `jwt`, and what is wrong with it."""
    said = config.get("issuer") or {}
    rules, errors = compile_rules(config, path)
    url, discovery = said.get("url", ""), said.get("discoveryURL", "")
    problems = [*_issuer_errors(said, f"{path}.issuer", disallowed), *errors]
    found = Issuer(
        url,
        tuple(said.get("audiences") or ()),
        rules,
        discovery or f"{url.removesuffix('/')}/.well-known/openid-configuration",
        said.get("certificateAuthority", ""),
    )
    return found, problems


def _duplicates(given: Sequence[Mapping[str, Any]]) -> Iterator[FieldError]:
    for field in ("url", "discoveryURL"):
        seen: set[str] = set()
        for i, one in enumerate(given):
            url = (one.get("issuer") or {}).get(field, "")
            if url and url in seen:
                yield duplicate(f"jwt[{i}].issuer.{field}", url)
            seen.add(url)


def _issuer_errors(issuer: Mapping[str, Any], path: str, disallowed: Sequence[str]) -> Iterator[FieldError]:
    url, discovery = issuer.get("url", ""), issuer.get("discoveryURL", "")
    if not url:
        yield required(f"{path}.url")
    else:
        yield from _url_errors(url, f"{path}.url", disallowed)
    if discovery:
        if url and url.rstrip("/") == discovery.rstrip("/"):
            yield invalid_value(f"{path}.discoveryURL", discovery, "discoveryURL must be different from URL")
        yield from _url_errors(discovery, f"{path}.discoveryURL", ())
    audiences, policy = issuer.get("audiences") or (), issuer.get("audienceMatchPolicy", "")
    at = f"{path}.audiences"
    if not audiences:
        yield required(at, f"at least one {at} is required")
    for i, audience in enumerate(audiences):
        if not audience:
            yield required(f"{at}[{i}]")
        elif audience in audiences[:i]:
            yield duplicate(f"{at}[{i}]", audience)
    if len(audiences) > 1 and policy != "MatchAny":
        why = "audienceMatchPolicy must be MatchAny for multiple audiences"
        yield invalid_value(f"{path}.audienceMatchPolicy", policy, why)
    elif len(audiences) == 1 and policy not in ("", "MatchAny"):
        why = "audienceMatchPolicy must be empty or MatchAny for single audience"
        yield invalid_value(f"{path}.audienceMatchPolicy", policy, why)
    if (pem := issuer.get("certificateAuthority", "")) and not _is_bundle(pem):
        why = "data does not contain any valid RSA or ECDSA certificates"
        yield invalid_value(f"{path}.certificateAuthority", "<omitted>", why)
    if egress := issuer.get("egressSelectorType", ""):
        why = "egress selectors are not supported: kone reaches issuers directly"
        yield invalid_value(f"{path}.egressSelectorType", egress, why)


def _url_errors(url: str, path: str, disallowed: Sequence[str]) -> Iterator[FieldError]:
    if url in disallowed:
        shown = " ".join(sorted(disallowed))
        yield invalid_value(path, url, f"URL must not overlap with disallowed issuers: [{shown}]")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        yield invalid_value(path, url, str(error))
        return
    if parts.scheme != "https":
        yield invalid_value(path, url, "URL scheme must be https")
    if parts.username is not None:
        yield invalid_value(path, url, "URL must not contain a username or password")
    if parts.query:
        yield invalid_value(path, url, "URL must not contain a query")
    if parts.fragment:
        yield invalid_value(path, url, "URL must not contain a fragment")


def _is_bundle(pem: str) -> bool:
    try:
        ssl.create_default_context(cadata=pem)
    except (ssl.SSLError, ValueError):
        return False
    return True
