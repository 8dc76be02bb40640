"""Encryption at rest by kube-apiserver's EncryptionConfiguration: which resources are stored how, by which keys.

The first provider of a resource's entry, and its first key, seals; every one of them may open. What is stored begins
with "k8s:enc:<provider>:v1:<key>:", as upstream's values do, so that it says itself who can read it. aesgcm binds a
value to its object's key: it cannot be moved to another. Rules and texts: k8s.io/apiserver validation_encryption.go.
"""

from __future__ import annotations

import base64
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kone.apimachinery import config_files
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.errors import FieldError, invalid_value, required
from kone.apimachinery.objects import Object
from kone.store.sealing import ENCRYPTED, SealError
from kone.store.store import ROOT, prefix_of

API_VERSIONS: Final = ("apiserver.config.k8s.io/v1", "v1")
AES_KEY_BYTES: Final = (16, 24, 32)
SECRETBOX_KEY_BYTES: Final = (32,)
_KEYS: Final = {"keys": [{"name": str, "secret": str}]}
_SHAPE: Final = {
    "resources": [
        {
            "resources": [str],
            "providers": [
                {"aesgcm": _KEYS, "aescbc": _KEYS, "secretbox": _KEYS, "identity": {}, "kms": config_files.ANY}
            ],
        }
    ]
}
_UNSTORED: Final = frozenset(("apiserveripinfo", "serviceipallocations", "servicenodeportallocations"))


class Cipher(ABC):
    """One key of one provider."""

    provider: str

    def __init__(self, name: str) -> None:
        self.prefix = f"k8s:enc:{self.provider}:v1:{name}:".encode()

    @abstractmethod
    def encrypt(self, value: bytes, key: bytes) -> bytes:
        """`key` is the object's."""

    @abstractmethod
    def decrypt(self, stored: bytes, key: bytes) -> bytes:
        """Raises ValueError."""


class AesGcm(Cipher):
    provider = "aesgcm"
    NONCE_BYTES: Final = 12

    def __init__(self, name: str, secret: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        super().__init__(name)
        self._aead = AESGCM(secret)

    def encrypt(self, value: bytes, key: bytes) -> bytes:
        nonce = os.urandom(self.NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, value, key)

    def decrypt(self, stored: bytes, key: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(stored[: self.NONCE_BYTES], stored[self.NONCE_BYTES :], key)
        except InvalidTag:
            raise ValueError("cipher: message authentication failed") from None


class AesCbc(Cipher):
    provider = "aescbc"
    BLOCK_BYTES: Final = 16

    def __init__(self, name: str, secret: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.algorithms import AES

        super().__init__(name)
        self._algorithm = AES(secret)

    def encrypt(self, value: bytes, key: bytes) -> bytes:
        from cryptography.hazmat.primitives import ciphers, padding

        iv = os.urandom(self.BLOCK_BYTES)
        padder = padding.PKCS7(self.BLOCK_BYTES * 8).padder()
        encryptor = ciphers.Cipher(self._algorithm, ciphers.modes.CBC(iv)).encryptor()
        return iv + encryptor.update(padder.update(value) + padder.finalize()) + encryptor.finalize()

    def decrypt(self, stored: bytes, key: bytes) -> bytes:
        from cryptography.hazmat.primitives import ciphers, padding

        iv, rest = stored[: self.BLOCK_BYTES], stored[self.BLOCK_BYTES :]
        if len(stored) < self.BLOCK_BYTES or len(rest) % self.BLOCK_BYTES:
            raise ValueError("the stored data is not a multiple of the block size")
        decryptor = ciphers.Cipher(self._algorithm, ciphers.modes.CBC(iv)).decryptor()
        unpadder = padding.PKCS7(self.BLOCK_BYTES * 8).unpadder()
        return unpadder.update(decryptor.update(rest) + decryptor.finalize()) + unpadder.finalize()


class Secretbox(Cipher):
    provider = "secretbox"

    def __init__(self, name: str, secret: bytes) -> None:
        try:
            from nacl.secret import SecretBox
        except ImportError:
            raise ConfigFileError("secretbox needs the library PyNaCl: pip install 'kone[secretbox]'") from None
        super().__init__(name)
        self._box = SecretBox(secret)

    def encrypt(self, value: bytes, key: bytes) -> bytes:
        return bytes(self._box.encrypt(value))

    def decrypt(self, stored: bytes, key: bytes) -> bytes:
        from nacl.exceptions import CryptoError

        try:
            return self._box.decrypt(stored)
        except CryptoError:
            raise ValueError("output array was not large enough for encryption") from None


_CIPHERS: Final[Mapping[str, Callable[[str, bytes], Cipher]]] = {
    "aesgcm": AesGcm,
    "aescbc": AesCbc,
    "secretbox": Secretbox,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """How some resources are stored: None among the ciphers is identity."""

    resources: tuple[str, ...]
    ciphers: tuple[Cipher | None, ...]

    def is_for(self, group: str, resource: str) -> bool:
        """Whether "secrets", "deployments.apps", "*.apps", "*." (the core group) or "*.*" of the entry means it."""
        meant = (f"{resource}.{group}" if group else resource, f"*.{group}", "*.*")
        return any(name in meant for name in self.resources)


class Encryption:
    """A store.Sealer by the rules of a file."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._known: dict[str, tuple[Cipher | None, ...]] = {}

    def seal(self, key: str, value: bytes) -> bytes:
        cipher = self._ciphers(key)[0]
        return value if cipher is None else cipher.prefix + cipher.encrypt(value, key.encode())

    def unseal(self, key: str, stored: bytes) -> tuple[bytes, bool]:
        problem = "no matching prefix found"
        ciphers = self._ciphers(key)
        for i, cipher in enumerate(ciphers):
            if cipher is None:
                if not stored.startswith(ENCRYPTED):
                    return stored, i > 0
                problem = "identity transformer tried to read encrypted data"
            elif stored.startswith(cipher.prefix):
                try:
                    return cipher.decrypt(stored[len(cipher.prefix) :], key.encode()), i > 0
                except ValueError as error:
                    problem = str(error)
        raise SealError(problem)

    def _ciphers(self, key: str) -> tuple[Cipher | None, ...]:
        prefix = prefix_of(key)
        found = self._known.get(prefix)
        if found is None:
            group, _, resource = prefix[len(ROOT) : -1].partition("/")
            group = "" if group == "core" else group
            rule = next((rule for rule in self._rules if rule.is_for(group, resource)), None)
            found = self._known[prefix] = (None,) if rule is None else rule.ciphers
        return found


def parse_encryption(text: str) -> Encryption:
    """The rules of a file. Raises ConfigFileError."""
    config = config_files.load(text, "EncryptionConfiguration", API_VERSIONS, _SHAPE)
    entries: list[Object] = config.get("resources") or []
    if not entries:
        config_files.refuse([required("resources", "at least one resources is required")])
    config_files.refuse([error for i, entry in enumerate(entries) for error in _entry_errors(entry, i)])
    if any("kms" in provider for entry in entries for provider in entry["providers"]):
        raise ConfigFileError("kms providers are not supported: give aesgcm, aescbc or secretbox")
    return Encryption([Rule(tuple(entry["resources"]), tuple(_ciphers_of(entry))) for entry in entries])


def _ciphers_of(entry: Object) -> Iterator[Cipher | None]:
    for provider in entry["providers"]:
        ((name, config),) = provider.items()
        if name == "identity":
            yield None
            continue
        for key in config["keys"]:
            yield _CIPHERS[name](key["name"], base64.b64decode(key["secret"]))


def _entry_errors(entry: Object, i: int) -> Iterator[FieldError]:
    resources, providers = entry.get("resources") or [], entry.get("providers") or []
    at = f"resources[{i}].resources"
    if not resources:
        yield required(at, f"at least one {at} is required")
    yield from _overlap_errors(resources, at)
    for j, name in enumerate(resources):
        if why := _resource_problem(name):
            yield invalid_value(f"{at}[{j}]", name, why)
    at = f"resources[{i}].providers"
    if not providers:
        yield required(at, f"at least one {at} is required")
    for j, provider in enumerate(providers):
        if len(provider) != 1:
            why = "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"
            if provider:
                why = "more than one provider specified in a single element, should split into different list elements"
            yield invalid_value(f"{at}[{j}]", dict.fromkeys(provider, "REDACTED"), why)
            continue
        ((kind, config),) = provider.items()
        if kind in _CIPHERS:
            sizes = SECRETBOX_KEY_BYTES if kind == "secretbox" else AES_KEY_BYTES
            yield from _key_errors((config or {}).get("keys") or [], f"{at}[{j}].{kind}.keys", sizes)


def _resource_problem(name: str) -> str:
    resource, _, group = name.partition(".")
    if name != name.lower():
        return "resource name should not contain capital letters"
    if name == "*":
        return "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
    if name in _UNSTORED:
        return "resources which do not have REST API/s cannot be encrypted"
    if group == "events.k8s.io":
        return (
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. "
            "Use 'events' instead in the config file"
        )
    if group == "extensions":
        return "'extensions' group has been removed and cannot be used for encryption"
    if group == "*" and resource != "*":
        return "encrypting the same resource across groups is not supported"
    return ""


def _overlap_errors(names: Sequence[str], path: str) -> Iterator[FieldError]:
    """Of one entry: a name twice, or a wildcard beside what it means too."""
    if len(set(names)) < len(names):
        yield invalid_value(path, list(names), "the same resource cannot be specified multiple times")
    distinct = {(group, resource) for resource, _, group in (name.partition(".") for name in names)}
    by_group: dict[str, set[str]] = {}
    for group, resource in distinct:
        by_group.setdefault(group, set()).add(resource)
    masked = ("*", "*") in distinct or any("*" in found for found in by_group.values() if len(found) > 1)
    if masked and len(distinct) > 1:
        why = (
            "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed "
            "as they will be masked"
        )
        yield invalid_value(path, list(names), why)


def _key_errors(keys: Sequence[Mapping[str, Any]], path: str, sizes: Sequence[int]) -> Iterator[FieldError]:
    if not keys:
        yield required(path, "at least one keys is required")
    for i, key in enumerate(keys):
        if not key.get("name"):
            yield required(f"{path}[{i}].name", "name is a mandatory field for a key")
        at = f"{path}[{i}].secret"
        if not key.get("secret"):
            yield required(at, "secret is a mandatory field for a key")
            continue
        try:
            secret = base64.b64decode(key["secret"], validate=True)
        except ValueError:
            yield invalid_value(at, "REDACTED", "secrets must be base64 encoded")
            continue
        if len(secret) not in sizes:
            expected = " ".join(map(str, sizes))
            why = f"secret is not of the expected length, got {len(secret)}, expected one of [{expected}]"
            yield invalid_value(at, "REDACTED", why)
