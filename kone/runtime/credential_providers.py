"""Credentials from programs on this host, which know a registry's own ways: asked when an image is pulled.

A program gets a CredentialProviderRequest on its standard input and answers with a CredentialProviderResponse; what it
says is kept as long as it says, for the image, its registry or all. One that is told to is shown a token of the pod's
service account, and what it answers is that account's only. Rules and texts:
kubernetes/pkg/credentialprovider/plugin/plugin.go.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kone.aio.clock import Clock
from kone.apimachinery.cel_values import parse_duration
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import SERVICEACCOUNTS
from kone.apimachinery.objects import Object, annotations_of, dig, name_of, namespace_of, uid_of
from kone.client.client import Client
from kone.runtime.credential_provider_config import Provider, TokenAttributes, parse
from kone.runtime.pod_spec import format_pod
from kone.runtime.registry_keyring import Credential, Keyring, Source, urls_match

log = logging.getLogger(__name__)

PLUGIN_S: Final = 60.0
_ENDINGS: Final = (".json", ".yaml", ".yml")
_EVERYWHERE: Final = "<global>"


class ProviderFailed(Exception):
    """A program gave no credentials; the text holds none either."""


def read_providers(config: Path, bin_dir: Path) -> list[Provider]:
    """The providers of a file, or of all files of a directory in order of their names, whose programs are in `bin_dir`.

    Raises ConfigFileError.
    """
    try:
        paths = [config]
        if config.is_dir():
            paths = sorted(path for path in config.iterdir() if path.suffix in _ENDINGS and not path.is_dir())
            if not paths:
                raise ConfigFileError(f"no configuration files found in directory {config}")
        providers = parse({str(path): path.read_text() for path in paths})
    except OSError as error:
        raise ConfigFileError(f"unable to read {error.filename}: {error.strerror}") from None
    if not bin_dir.is_dir():
        raise ConfigFileError(f"plugin binary directory {bin_dir} did not exist")
    for provider in providers:
        program = bin_dir / provider.name
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise ConfigFileError(f"plugin binary executable {program} did not exist")
    return providers


@dataclass(frozen=True, slots=True)
class _Account:
    """The pod's service account as a provider is told of it."""

    source: Source
    annotations: Mapping[str, str]
    token: str

    def cache_key(self, token: TokenAttributes) -> tuple[Any, ...]:
        kept = hashlib.sha256(self.token.encode()).hexdigest() if token.cache_type == "Token" else ""
        return self.source, tuple(sorted(self.annotations.items())), kept


@dataclass(frozen=True, slots=True)
class _Kept:
    auths: Mapping[str, Any]
    until: float


class CredentialProviders:
    """All providers of this node."""

    def __init__(self, providers: Sequence[Provider], bin_dir: Path, client: Client, clock: Clock) -> None:
        self._providers = [_Asked(provider, bin_dir, client, clock) for provider in providers]

    async def lookup(self, repository: str, pod: Object) -> list[Credential]:
        """What the providers say for an image's name without tag and digest, asked for by that pod."""
        found: list[Credential] = []
        for provider in self._providers:
            try:
                found += await provider.lookup(repository, pod)
            except ProviderFailed as error:
                log.error(
                    "no credentials for image %s: provider %s, pod %s: %s",
                    repository,
                    provider.name,
                    format_pod(pod),
                    error,
                )
        return found


class _Asked:
    """One provider, and what it has said."""

    def __init__(self, provider: Provider, bin_dir: Path, client: Client, clock: Clock) -> None:
        self._provider, self._bin_dir, self._client, self._clock = provider, bin_dir, client, clock
        self._kept: dict[tuple[Any, ...], _Kept] = {}
        self._asking: dict[tuple[Any, ...], asyncio.Task[Object]] = {}

    @property
    def name(self) -> str:
        return self._provider.name

    async def lookup(self, repository: str, pod: Object) -> list[Credential]:
        """Raises ProviderFailed."""
        if not any(urls_match(pattern, repository) for pattern in self._provider.match_images):
            return []
        account: _Account | None = None
        own_key: tuple[Any, ...] = ()
        if (attributes := self._provider.token) is not None:
            name = dig(pod, "spec", "serviceAccountName", default="")
            if name:
                account = await self._account(pod, name, attributes)
                if account is None:
                    return []
                own_key = account.cache_key(attributes)
            elif attributes.require_account:
                return []
        auths = self._remembered(repository, own_key)
        if auths is None:
            auths = await self._ask(repository, account, own_key)
        keyring = Keyring()
        keyring.add(auths, account.source if account is not None else None)
        return keyring.lookup(repository)

    async def _account(self, pod: Object, name: str, attributes: TokenAttributes) -> _Account | None:
        """None where it lacks an annotation without which the provider is not asked."""
        namespace = namespace_of(pod)
        try:
            account = await self._client.get(SERVICEACCOUNTS, name, namespace)
        except StatusError as error:
            raise ProviderFailed(f"failed to get service account: {error}") from None
        annotations = annotations_of(account)
        for key in attributes.required_annotations:
            if key not in annotations:
                log.debug("provider %s is not asked: required annotation %s not found", self.name, key)
                return None
        wanted = (*attributes.required_annotations, *attributes.optional_annotations)
        request: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"uid": uid_of(account)},
            "spec": {
                "audiences": [attributes.audience],
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name_of(pod), "uid": uid_of(pod)},
            },
        }
        try:
            answer = await self._client.create(
                SERVICEACCOUNTS, request, namespace=namespace, name=name, subresource="token"
            )
        except StatusError as error:
            raise ProviderFailed(f"failed to get service account token: {error}") from None
        return _Account(
            Source("ServiceAccount", uid_of(account), namespace, name),
            {key: annotations[key] for key in wanted if key in annotations},
            dig(answer, "status", "token", default=""),
        )

    def _remembered(self, repository: str, own_key: tuple[Any, ...]) -> Mapping[str, Any] | None:
        now = self._clock.now()
        self._kept = {key: kept for key, kept in self._kept.items() if kept.until >= now}
        for base in (repository, _registry(repository), _EVERYWHERE):
            if (kept := self._kept.get((base, *own_key))) is not None:
                return kept.auths
        return None

    async def _ask(self, repository: str, account: _Account | None, own_key: tuple[Any, ...]) -> Mapping[str, Any]:
        answer = await self._answer(repository, account)
        auths: Mapping[str, Any] = answer.get("auth") or {}
        attributes = self._provider.token
        keeps_token = attributes is not None and attributes.cache_type == "Token"
        if account is not None and not keeps_token and any(e.get("password") == account.token for e in auths.values()):
            raise ProviderFailed(
                "credential provider plugin returned the service account token as the password which is not allowed "
                "when service account cache type is not set to 'Token'"
            )
        kind = answer.get("cacheKeyType", "")
        bases = {"Image": repository, "Registry": _registry(repository), "Global": _EVERYWHERE}
        if kind not in bases:
            raise ProviderFailed(f"credential provider plugin did not return a valid cacheKeyType: {kind}")
        lasts_s = self._provider.default_cache_s
        if (said := answer.get("cacheDuration")) is not None:
            found = parse_duration(said)
            lasts_s = 0.0 if found is None else found.ns / 1e9
        if lasts_s > 0:
            self._kept[(bases[kind], *own_key)] = _Kept(auths, self._clock.now() + lasts_s)
        return auths

    async def _answer(self, repository: str, account: _Account | None) -> Object:
        """The program's answer; those who ask the same at the same time share one."""
        annotations = tuple(sorted(account.annotations.items())) if account is not None else ()
        key = (repository, account.token if account is not None else "", annotations)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._run(repository, account), name=f"credential-provider {self.name}")
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def _run(self, repository: str, account: _Account | None) -> Object:
        request: Object = {
            "kind": "CredentialProviderRequest",
            "apiVersion": self._provider.api_version,
            "image": repository,
        }
        if account is not None:
            request["serviceAccountToken"] = account.token
            if account.annotations:
                request["serviceAccountAnnotations"] = dict(account.annotations)
        what = f"error execing credential provider plugin {self.name} for image {repository}"
        try:
            process = await asyncio.create_subprocess_exec(
                self._bin_dir / self.name,
                *self._provider.args,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **dict(self._provider.env)},
            )
        except OSError as error:
            raise ProviderFailed(f"{what}: {error}") from None
        try:
            async with asyncio.timeout(PLUGIN_S):
                out, err = await process.communicate(json.dumps(request).encode())
        except TimeoutError:
            raise ProviderFailed(f"{what}: context deadline exceeded") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise ProviderFailed(f"{what}: exit status {process.returncode}: {err.decode(errors='replace').strip()}")
        return self._read(out)

    def _read(self, out: bytes) -> Object:
        """What is wrong with an answer is told without its words: they may be a password."""
        try:
            answer = json.loads(out)
            version, kind, auths = answer.get("apiVersion", ""), answer.get("kind", ""), answer.get("auth") or {}
            well_formed = kind == "CredentialProviderResponse" and all(isinstance(e, dict) for e in auths.values())
        except (ValueError, AttributeError):
            raise ProviderFailed("error decoding credential provider plugin response from stdout") from None
        if version != self._provider.api_version:
            raise ProviderFailed(
                "apiVersion from credential plugin response did not match expected "
                f"apiVersion:{self._provider.api_version}, actual apiVersion:{version}"
            )
        if not well_formed:
            raise ProviderFailed("error decoding credential provider plugin response from stdout")
        return answer  # type: ignore[no-any-return]


def _registry(repository: str) -> str:
    return repository.partition("/")[0]
