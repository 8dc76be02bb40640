"""Which programs are asked for registry credentials, and for which images: kind CredentialProviderConfig. Pure.

Rules and texts: kubernetes/pkg/credentialprovider/plugin/config.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from kone.apimachinery import config_files
from kone.apimachinery.cel_values import parse_duration
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.names import is_qualified_name
from kone.apimachinery.objects import Object
from kone.runtime.registry_keyring import is_url

KIND: Final = "CredentialProviderConfig"
V1: Final = "credentialprovider.kubelet.k8s.io/v1"
PROTOCOLS: Final = tuple(f"credentialprovider.kubelet.k8s.io/{version}" for version in ("v1", "v1alpha1", "v1beta1"))
CACHE_TYPES: Final = ("ServiceAccount", "Token")
_API_VERSIONS: Final = tuple(f"kubelet.config.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
_SHAPE: Final[Mapping[str, Any]] = {
    "providers": [
        {
            "name": str,
            "apiVersion": str,
            "matchImages": [str],
            "defaultCacheDuration": str,
            "args": [str],
            "env": [{"name": str, "value": str}],
            "tokenAttributes": {
                "serviceAccountTokenAudience": str,
                "requireServiceAccount": bool,
                "requiredServiceAccountAnnotationKeys": [str],
                "optionalServiceAccountAnnotationKeys": [str],
                "cacheType": str,
            },
        }
    ]
}


@dataclass(frozen=True, slots=True)
class TokenAttributes:
    """A provider that is shown a token of the pod's service account."""

    audience: str
    require_account: bool
    required_annotations: Sequence[str]
    optional_annotations: Sequence[str]
    cache_type: Literal["ServiceAccount", "Token"]


@dataclass(frozen=True, slots=True)
class Provider:
    """A program of that name, run with these arguments and this environment beside the kubelet's own."""

    name: str
    api_version: str
    match_images: Sequence[str]
    default_cache_s: float
    args: Sequence[str] = ()
    env: Sequence[tuple[str, str]] = ()
    token: TokenAttributes | None = None


def parse(files: Mapping[str, str]) -> list[Provider]:
    """The providers of configuration files, contents by path, in that order. Raises ConfigFileError."""
    found: list[Object] = []
    for path, text in files.items():
        try:
            content = config_files.load(text, KIND, _API_VERSIONS, _SHAPE)
        except ConfigFileError as error:
            raise ConfigFileError(f"error decoding config {path}: {error}") from None
        for provider in content.get("providers") or ():
            name = provider.get("name", "")
            if any(name == other.get("name", "") for other in found):
                raise ConfigFileError(f'duplicate provider name "{name}" found in configuration file(s)')
            found.append(provider)
    errors = list(_errors(found))
    if errors:
        try:
            config_files.refuse(errors)
        except ConfigFileError as error:
            raise ConfigFileError(f"failed to validate credential provider config: {error}") from None
    return [_provider(provider) for provider in found]


def _provider(provider: Object) -> Provider:
    tokens = provider.get("tokenAttributes")
    return Provider(
        provider["name"],
        provider["apiVersion"],
        tuple(provider["matchImages"]),
        _seconds(provider["defaultCacheDuration"]) or 0.0,
        tuple(provider.get("args") or ()),
        tuple((variable.get("name", ""), variable.get("value", "")) for variable in provider.get("env") or ()),
        None
        if tokens is None
        else TokenAttributes(
            tokens["serviceAccountTokenAudience"],
            tokens["requireServiceAccount"],
            tuple(tokens.get("requiredServiceAccountAnnotationKeys") or ()),
            tuple(tokens.get("optionalServiceAccountAnnotationKeys") or ()),
            tokens["cacheType"],
        ),
    )


def _seconds(text: str) -> float | None:
    found = parse_duration(text)
    return None if found is None else found.ns / 1e9


def _errors(providers: Sequence[Object]) -> Iterator[FieldError]:
    if not providers:
        yield required("providers", "at least 1 item in plugins is required")
    for provider in providers:
        yield from _provider_errors(provider)


def _provider_errors(provider: Object) -> Iterator[FieldError]:
    at = "providers"
    name, api_version = provider.get("name", ""), provider.get("apiVersion", "")
    if "/" in name:
        yield invalid_value(f"{at}.name", name, "provider name cannot contain '/'")
    if " " in name:
        yield invalid_value(f"{at}.name", name, "provider name cannot contain spaces")
    if name in (".", ".."):
        yield invalid_value(f"{at}.name", name, f"provider name cannot be '{name}'")
    if not api_version:
        yield required(f"{at}.apiVersion")
    elif api_version not in PROTOCOLS:
        yield not_supported(f"{at}.apiVersion", api_version, PROTOCOLS)
    if not provider.get("matchImages"):
        yield required(f"{at}.matchImages", "at least 1 item in matchImages is required")
    for pattern in provider.get("matchImages") or ():
        if not is_url(pattern):
            yield invalid_value(f"{at}.matchImages", pattern, "match image is invalid: it is no address")
    lasts = provider.get("defaultCacheDuration")
    if lasts is None:
        yield required(f"{at}.defaultCacheDuration")
    elif (seconds := _seconds(lasts)) is None:
        yield invalid_value(f"{at}.defaultCacheDuration", lasts, "it is no duration")
    elif seconds < 0:
        yield invalid_value(f"{at}.defaultCacheDuration", lasts, "must be greater than or equal to 0")
    if (tokens := provider.get("tokenAttributes")) is not None:
        yield from _token_errors(tokens, api_version)


def _token_errors(tokens: Object, api_version: str) -> Iterator[FieldError]:
    at = "providers.tokenAttributes"
    needed = tokens.get("requiredServiceAccountAnnotationKeys") or []
    optional = tokens.get("optionalServiceAccountAnnotationKeys") or []
    if not tokens.get("serviceAccountTokenAudience"):
        yield required(f"{at}.serviceAccountTokenAudience")
    if tokens.get("requireServiceAccount") is None:
        yield required(f"{at}.requireServiceAccount")
    if api_version != V1:
        yield forbidden_field(at, f"tokenAttributes is only supported for {V1} API version")
    if tokens.get("requireServiceAccount") is False and needed:
        why = "requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set"
        yield forbidden_field(f"{at}.requiredServiceAccountAnnotationKeys", why)
    yield from _key_errors(f"{at}.requiredServiceAccountAnnotationKeys", needed)
    yield from _key_errors(f"{at}.optionalServiceAccountAnnotationKeys", optional)
    if both := sorted(set(needed) & set(optional)):
        yield invalid_value(at, both, "annotation keys cannot be both required and optional")
    cache_type = tokens.get("cacheType", "")
    if not cache_type:
        values = f"Supported values are: {', '.join(CACHE_TYPES)}"
        yield required(
            f"{at}.cacheType", f"cacheType is required to be set when tokenAttributes is specified. {values}"
        )
    elif cache_type not in CACHE_TYPES:
        yield not_supported(f"{at}.cacheType", cache_type, CACHE_TYPES)


def _key_errors(at: str, keys: Sequence[str]) -> Iterator[FieldError]:
    seen = set()
    for key in keys:
        for problem in is_qualified_name(key.lower()):
            yield invalid_value(at, key, problem)
        if key in seen:
            yield duplicate(at, key)
        seen.add(key)
