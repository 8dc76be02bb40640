"""Service account tokens: JWTs signed by the cluster, bound to a pod, secret or node, valid as long as that lives.

Signed with ES256 (30 us a token; RS256 takes 20 times as long). A token's signature is verified once and remembered;
its times and the objects it is bound to are checked at every use, so that deleting the pod ends the token at once.
PyJWT and cryptography are imported with the first token, not at start.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kone.aio.clock import Clock
from kone.apimachinery.errors import (
    FieldError,
    bad_request,
    conflict,
    go_quote,
    invalid,
    invalid_value,
    not_found,
)
from kone.apimachinery.kinds import parse_api_version
from kone.apimachinery.objects import Object, dig, metadata, name_of, uid_of
from kone.apimachinery.timestamps import format_time, parse_time
from kone.apimachinery.users import SERVICE_ACCOUNT_PREFIX, User, service_account_user

if TYPE_CHECKING:
    from jwt.types import Options

DEFAULT_ISSUER = "https://kubernetes.default"
SECRET_ISSUER = "kubernetes/serviceaccount"  # of the lasting tokens in secrets
DEFAULT_EXPIRATION_S = 3600
MIN_EXPIRATION_S = 600
MAX_EXPIRATION_S = 1 << 32
# A token that ServiceAccount admission projects asks for this odd lifetime, and lives a year: old clients that read the
# file once go on working, and warnafter says when they should have read it again (serviceaccount/claims.go).
PROJECTED_EXPIRATION_S = 3607
EXTENDED_EXPIRATION_S = 365 * 24 * 3600
LEEWAY_S = 60.0  # of the clocks of the signer and the verifier (go-jose's default)
VERIFIED_REMEMBERED = 1024
KEYS_MAX_AGE_S = 3600
INVALID_SINCE = "kubernetes.io/legacy-token-invalid-since"

GROUP_KIND = "TokenRequest.authentication.k8s.io"
ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class ObjectGetter(Protocol):
    """Where the objects that tokens are bound to are looked up; `cached_objects` makes one of the caches."""

    def __call__(self, resource: str, namespace: str, name: str) -> Object | None: ...


@dataclass(frozen=True, slots=True)
class TokenUser:
    """Whose token it is, and for which of the asked audiences."""

    user: User
    audiences: tuple[str, ...]


class ServiceAccountTokens:
    """Signs and verifies. `key_pem` is the signing key; tokens of `older_keys_pem` verify, too (a rotated key)."""

    def __init__(
        self,
        key_pem: bytes,
        get: ObjectGetter,
        clock: Clock,
        *,
        issuer: str = DEFAULT_ISSUER,
        audiences: Sequence[str] = (),
        older_keys_pem: Sequence[bytes] = (),
    ) -> None:
        self.issuer = issuer
        self.audiences = tuple(audiences) or (issuer,)
        self._pems = (key_pem, *older_keys_pem)
        self._loaded: tuple[SigningKey, ...] = ()
        self._get = get
        self._clock = clock
        self._verified: OrderedDict[bytes, Mapping[str, Any]] = OrderedDict()

    @property
    def _keys(self) -> tuple[SigningKey, ...]:
        if not self._loaded:
            self._loaded = tuple(load_key(pem) for pem in self._pems)
        return self._loaded

    # -- asking for a token -------------------------------------------------------------------------------------

    def request(self, namespace: str, name: str, body: Object) -> Object:
        """Answer a TokenRequest for a service account: the request with spec filled in, and the token in status.

        Raises StatusError: 422 for an expiration out of bounds or another name, 404 for an account or bound object that
        is not there, 409 for a uid that is another, 400 for an object that a token cannot be bound to.
        """
        asked_name = name_of(body)
        if asked_name and asked_name != name:
            error = invalid_value("metadata.name", asked_name, "must match the service account name if specified")
            raise invalid(GROUP_KIND, name, [error])
        account = self._require("serviceaccounts", namespace, name)
        if (uid := uid_of(body)) and uid != uid_of(account):
            ours = uid_of(account)
            why = f"the UID in the token request ({uid}) does not match the UID of the service account ({ours})"
            raise conflict("TokenRequest.authentication.k8s.io", name, why)
        spec: Object = dict(body.get("spec") or {})
        audiences = list(spec.get("audiences") or self.audiences)
        expiration_s = spec.get("expirationSeconds")
        expiration_s = DEFAULT_EXPIRATION_S if expiration_s is None else expiration_s
        if errors := list(validate_expiration(expiration_s)):
            raise invalid(GROUP_KIND, "", errors)
        bound = self._bind(namespace, name, spec.get("boundObjectRef"))
        now = self._clock.now()
        lifetime_s, warn_after_s = expiration_s, 0
        is_for_us = set(audiences) <= set(self.audiences)
        if "pod" in bound and expiration_s == PROJECTED_EXPIRATION_S and is_for_us:
            lifetime_s, warn_after_s = EXTENDED_EXPIRATION_S, expiration_s
        claims = self._claims(account, bound, audiences, int(now), lifetime_s, warn_after_s)
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                **metadata(body),
                "name": name,
                "namespace": namespace,
                "uid": uid_of(account),
                "creationTimestamp": format_time(now),
            },
            "spec": {
                **spec,
                "audiences": audiences,
                "expirationSeconds": expiration_s,
                "boundObjectRef": spec.get("boundObjectRef"),
            },
            "status": {"token": self.sign(claims), "expirationTimestamp": format_time(now + expiration_s)},
        }

    def sign(self, claims: Mapping[str, Any]) -> str:
        import jwt

        key = self._keys[0]
        return jwt.encode(dict(claims), key.private, algorithm=key.algorithm, headers={"kid": key.id, "typ": None})

    def of_secret(self, account: Object, secret: Object) -> str:
        """The token that a secret of the type kubernetes.io/service-account-token holds, as long as it is there."""
        namespace, name = metadata(account)["namespace"], name_of(account)
        prefix = "kubernetes.io/serviceaccount/"
        return self.sign(
            {
                "iss": SECRET_ISSUER,
                "sub": f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}",
                f"{prefix}namespace": namespace,
                f"{prefix}secret.name": name_of(secret),
                f"{prefix}service-account.name": name,
                f"{prefix}service-account.uid": uid_of(account),
            }
        )

    def _bind(self, namespace: str, account: str, ref: Object | None) -> dict[str, Object]:
        """The claims that say what the token is bound to."""
        if not ref:
            return {}
        group, version = parse_api_version(str(ref.get("apiVersion", "")))
        kind, name = str(ref.get("kind", "")), str(ref.get("name", ""))
        resource = {"Pod": "pods", "Node": "nodes", "Secret": "secrets"}.get(kind) if not group else None
        if resource is None:
            raise bad_request(f"cannot bind token to object of type {group}/{version}, Kind={kind}")
        found = self._require(resource, "" if kind == "Node" else namespace, name)
        claims = {kind.lower(): _reference(found)}
        if kind == "Pod":
            if dig(found, "spec", "serviceAccountName") != account:
                raise bad_request(
                    f"cannot bind token for serviceaccount {go_quote(account)} "
                    "to pod running with different serviceaccount name."
                )
            if node_name := dig(found, "spec", "nodeName"):
                node = self._get("nodes", "", node_name)
                claims["node"] = _reference(node) if node else {"name": node_name}
        if (uid := ref.get("uid")) and uid != uid_of(found):
            raise conflict(
                f"{kind}.{group}" if group else kind,
                name,
                f"the UID in the bound object reference ({uid}) does not match the UID in record. "
                "The object might have been deleted and then recreated",
            )
        return claims

    def _claims(
        self,
        account: Object,
        bound: Mapping[str, Object],
        audiences: Sequence[str],
        now: int,
        lifetime_s: int,
        warn_after_s: int,
    ) -> dict[str, Any]:
        private: dict[str, Any] = {
            "namespace": metadata(account)["namespace"],
            **bound,
            "serviceaccount": _reference(account),
        }
        if warn_after_s:
            private["warnafter"] = now + warn_after_s
        return {
            "aud": list(audiences),
            "exp": now + lifetime_s,
            "iat": now,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": private,
            "nbf": now,
            "sub": f"{SERVICE_ACCOUNT_PREFIX}{private['namespace']}:{name_of(account)}",
        }

    def _require(self, resource: str, namespace: str, name: str) -> Object:
        found = self._get(resource, namespace, name)
        if found is None:
            raise not_found(resource, name)
        return found

    # -- using a token ------------------------------------------------------------------------------------------

    def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None:
        """The service account that shows this token; None where it is no token of this issuer.

        `audiences`: at least one of them must be the token's; () means the API server's own. Raises ValueError, with
        upstream's text, for a bad signature, a wrong time or audience, or a bound object that is gone.
        """
        claims = self._verified_claims(token)
        if claims is None:
            return None
        wanted = tuple(audiences) or self.audiences
        aud = claims.get("aud") or self.audiences
        token_audiences = [aud] if isinstance(aud, str) else list(aud)
        good = tuple(a for a in token_audiences if a in wanted)
        if not good:
            raise ValueError(
                f"token audiences {_go_list(token_audiences)} is invalid for the target audiences {_go_list(wanted)}"
            )
        self._check_times(claims)
        if claims.get("iss") == SECRET_ISSUER:
            return TokenUser(self._check_secret(claims, token), good)
        return TokenUser(self._check_bound(claims), good)

    def _verified_claims(self, token: str) -> Mapping[str, Any] | None:
        digest = hashlib.sha256(token.encode()).digest()
        if (known := self._verified.get(digest)) is not None:
            self._verified.move_to_end(digest)
            return known
        if unverified_issuer(token) not in (self.issuer, SECRET_ISSUER):
            return None
        import jwt

        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.InvalidTokenError:
            return None
        keys = [key for key in self._keys if not kid or key.id == kid]
        if not keys:
            raise ValueError("invalid signature, no keys found")
        problem: Exception | None = None
        for key in keys:
            try:
                # Times and audiences are checked at every use, with upstream's texts.
                claims: dict[str, Any] = jwt.decode(
                    token, key.public, algorithms=[key.algorithm], options=SIGNATURE_ONLY
                )
            except jwt.InvalidTokenError as error:
                problem = error
                continue
            self._verified[digest] = claims
            if len(self._verified) > VERIFIED_REMEMBERED:
                self._verified.popitem(last=False)
            return claims
        raise ValueError("go-jose/go-jose: error in cryptographic primitive") from problem

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._clock.now()
        if now + LEEWAY_S < claims.get("nbf", 0):
            raise ValueError("service account token is not valid yet")
        if now - LEEWAY_S > claims.get("exp", float("inf")):
            raise ValueError("service account token has expired")
        if now + LEEWAY_S < claims.get("iat", 0):
            raise ValueError("service account token is issued in the future")

    def _check_bound(self, claims: Mapping[str, Any]) -> User:
        private = claims.get("kubernetes.io") or {}
        namespace = str(private.get("namespace", ""))
        account = private.get("serviceaccount") or {}
        name = str(account.get("name", ""))
        found = self._get("serviceaccounts", namespace, name)
        if found is None:
            raise ValueError(f"serviceaccount {go_quote(name)} not found")
        if uid_of(found) != account.get("uid"):
            raise ValueError(f"service account UID ({uid_of(found)}) does not match claim ({account.get('uid', '')})")
        if self._is_deleted(found):
            raise ValueError(f"service account {namespace}/{name} has been deleted")
        extra: dict[str, tuple[str, ...]] = {}
        if secret := private.get("secret"):
            self._check_reference("secrets", namespace, secret)
        if pod := private.get("pod"):
            self._check_reference("pods", namespace, pod)
            extra["authentication.kubernetes.io/pod-name"] = (pod["name"],)
            extra["authentication.kubernetes.io/pod-uid"] = (pod["uid"],)
        if jti := claims.get("jti"):
            extra["authentication.kubernetes.io/credential-id"] = (f"JTI={jti}",)
        if node := private.get("node"):
            if not pod:
                self._check_reference("nodes", "", node)
            extra["authentication.kubernetes.io/node-name"] = (node["name"],)
            if node.get("uid"):
                extra["authentication.kubernetes.io/node-uid"] = (node["uid"],)
        return service_account_user(namespace, name, account["uid"], extra)

    def _check_secret(self, claims: Mapping[str, Any], token: str) -> User:
        """Who shows the token of a secret: one that must still be there, hold it, and not be marked as invalid."""
        prefix = "kubernetes.io/serviceaccount/"
        said = {}
        for word, field_ in (
            ("namespace", "namespace"),
            ("secretName", "secret.name"),
            ("serviceAccountName", "service-account.name"),
            ("serviceAccountUID", "service-account.uid"),
        ):
            said[word] = str(claims.get(prefix + field_, ""))
            if not said[word]:
                raise ValueError(f"{word} claim is missing")
        namespace, name, uid = said["namespace"], said["serviceAccountName"], said["serviceAccountUID"]
        if claims.get("sub") != f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}":
            raise ValueError("sub claim is invalid")
        secret = self._get("secrets", namespace, said["secretName"])
        if secret is None or metadata(secret).get("deletionTimestamp"):
            raise ValueError("Token has been invalidated")
        stored = base64.b64decode(dig(secret, "data", "token", default=""))
        if not hmac.compare_digest(stored, token.encode()):
            raise ValueError("Token does not match server's copy")
        account = self._get("serviceaccounts", namespace, name)
        if account is None:
            raise ValueError(f"serviceaccount {go_quote(name)} not found")
        if metadata(account).get("deletionTimestamp"):
            raise ValueError(f"ServiceAccount {namespace}/{name} has been deleted")
        if uid_of(account) != uid:
            raise ValueError(f"ServiceAccount UID ({uid_of(account)}) does not match claim ({uid})")
        if (metadata(secret).get("labels") or {}).get(INVALID_SINCE):
            where = f"secret {namespace}/{said['secretName']} for service account {namespace}/{name}"
            raise ValueError(
                f"the token in {where} has been marked invalid. Use tokens from the TokenRequest API or manually "
                f"created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily "
                "allow use of this token"
            )
        return service_account_user(namespace, name, uid)

    def _check_reference(self, resource: str, namespace: str, ref: Mapping[str, Any]) -> None:
        found = self._get(resource, namespace, str(ref.get("name", "")))
        if found is None or self._is_deleted(found):
            raise ValueError("service account token has been invalidated")
        if uid_of(found) != ref.get("uid"):
            title, word = {
                "secrets": ("secret", "service account secret ref"),
                "pods": ("pod", "service account pod ref"),
                "nodes": ("node", "service account node ref"),
            }[resource]
            raise ValueError(f"{title} UID ({uid_of(found)}) does not match {word} claim ({ref.get('uid', '')})")

    def _is_deleted(self, obj: Object) -> bool:
        """Deleted longer ago than clocks differ; a pod keeps its token while it ends gracefully."""
        moment: str = metadata(obj).get("deletionTimestamp") or ""
        return bool(moment) and parse_time(moment) < self._clock.now() - LEEWAY_S

    # -- OIDC discovery -----------------------------------------------------------------------------------------

    def openid_configuration(self, jwks_uri: str) -> Object:
        """The body of /.well-known/openid-configuration; `jwks_uri` is where outsiders reach /openid/v1/jwks."""
        return {
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": sorted({key.algorithm for key in self._keys}),
        }

    def jwks(self) -> Object:
        """The body of /openid/v1/jwks: the public keys."""
        return {"keys": [key.jwk() for key in self._keys]}


@dataclass(frozen=True, slots=True)
class SigningKey:
    private: Any
    public: Any
    algorithm: str
    id: str  # base64url of the SHA-256 of the public key's DER, as upstream's

    def jwk(self) -> Object:
        import jwt.algorithms

        maker = jwt.algorithms.get_default_algorithms()[self.algorithm]
        found: Object = json.loads(maker.to_jwk(self.public))
        found.pop("key_ops", None)
        return {"use": "sig", **found, "kid": self.id, "alg": self.algorithm}


def load_key(pem: bytes) -> SigningKey:
    """A private key of PEM. Raises ValueError for what is neither RSA nor one of the NIST curves."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    private = load_pem_private_key(pem, None)
    if isinstance(private, rsa.RSAPrivateKey):
        algorithm = "RS256"
    elif isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in ALGORITHMS:
        algorithm = ALGORITHMS[private.curve.name]
    else:
        raise ValueError("a service account key must be RSA, or ECDSA on P-256, P-384 or P-521")
    public = private.public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key_id = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
    return SigningKey(private, public, algorithm, key_id)


def validate_expiration(expiration_s: int) -> list[FieldError]:
    path = "spec.expirationSeconds"
    if expiration_s < MIN_EXPIRATION_S:
        return [invalid_value(path, expiration_s, "may not specify a duration less than 10 minutes")]
    if expiration_s > MAX_EXPIRATION_S:
        return [invalid_value(path, expiration_s, "may not specify a duration larger than 2^32 seconds")]
    return []


SIGNATURE_ONLY: Options = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


def unverified_issuer(token: str) -> str:
    """The issuer that a JWT claims, "" where it is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error):
        return ""
    issuer = claims.get("iss") if isinstance(claims, dict) else ""
    return issuer if isinstance(issuer, str) else ""


def _reference(obj: Object) -> Object:
    return {"name": name_of(obj), "uid": uid_of(obj)}


def _go_list(texts: Sequence[str]) -> str:
    """Strings as Go's %q prints a slice of them."""
    return "[" + " ".join(go_quote(text) for text in texts) + "]"
