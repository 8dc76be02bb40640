"""Rules on the names of certificate signers and trust bundles."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import go_quote, invalid_value, required, too_long
from kone.apimachinery.names import is_dns1123_label, is_dns1123_subdomain
from kone.registry.rules import Errors

_MAX_DOMAIN = 253
_MAX_SIGNER_NAME = _MAX_DOMAIN + 1 + 253 + 1 + 63  # <domain>/<namespace>.<name>


def is_kubernetes_signer(name: str) -> bool:
    """Whether the name is reserved for Kubernetes itself."""
    host = name.partition("/")[0]
    return host == "kubernetes.io" or host.endswith(".kubernetes.io")


def signer_name(errors: Errors, path: str, name: str) -> None:
    """A signer: "<domain>/<path>", both of dotted labels (ValidateSignerName)."""
    if not name:
        errors.append(required(path))
        return
    segments = name.split("/")
    if len(segments) != 2:
        text = "must be a fully qualified domain and path of the form 'example.com/signer-name'"
        errors.append(invalid_value(path, name, text))
        return
    domain, rest = segments
    if len(domain.encode()) > _MAX_DOMAIN:
        errors.append(too_long(path, _MAX_DOMAIN))
    _first_bad(errors, path, domain, ((label, is_dns1123_label(label)) for label in domain.split(".")))
    if "." not in domain:
        errors.append(invalid_value(path, domain, "should be a domain with at least two segments separated by dots"))
    _first_bad(errors, path, rest, ((label, is_dns1123_subdomain(label)) for label in rest.split(".")))
    if len(name.encode()) > _MAX_SIGNER_NAME:
        errors.append(too_long(path, _MAX_SIGNER_NAME))


def _first_bad(errors: Errors, path: str, value: str, labels: Iterable[tuple[str, list[str]]]) -> None:
    """The errors of the first bad label only: those of the next would read the same."""
    for label, texts in labels:
        if texts:
            for text in texts:
                errors.append(invalid_value(path, value, f"validating label {go_quote(label)}: {text}"))
            return


def trust_bundle_name(name: str, signer: str | None = None) -> list[str]:
    """What is wrong with a ClusterTrustBundle's name.

    A bundle tied to a signer is named "<signer with : for />:<name>", others are subdomains. None reads the signer off
    the name itself.
    """
    if signer is None:
        prefix, colon, _ = name.rpartition(":")
        signer = prefix.replace(":", "/") if colon else ""
    if not signer:
        if ":" in name:
            return ['ClusterTrustBundle without signer name must not have ":" in its name']
        return is_dns1123_subdomain(name)
    prefix = f"{signer.replace('/', ':')}:"
    if not name.startswith(prefix):
        return [f"ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"]
    return is_dns1123_subdomain(name.removeprefix(prefix))
