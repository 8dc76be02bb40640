"""ServiceAccount: a pod runs as an account of its namespace, whose token is projected into every container."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

from kone.admission.plugin import Attributes, Cache, Caches, Plugin
from kone.aio.clock import Clock
from kone.apimachinery.names import generate_name
from kone.apimachinery.objects import Object, annotations_of, dig, name_of
from kone.apimachinery.pod_references import secret_names

DEFAULT_ACCOUNT = "default"
MIRROR_POD = "kubernetes.io/config.mirror"
ENFORCE_MOUNTABLE_SECRETS = "kubernetes.io/enforce-mountable-secrets"
TOKEN_MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
VOLUME_PREFIX = "kube-api-access-"
TOKEN_EXPIRATION_S = 3607  # odd on purpose: it marks tokens that this plugin asked for
# A namespace's default account is made by a controller a moment after the namespace.
WAIT_FOR_DEFAULT_S = 1.5
NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


class ServiceAccount(Plugin):
    name = "ServiceAccount"
    resources = frozenset({("", "pods")})
    subresources = frozenset({"", "ephemeralcontainers"})

    def __init__(self, caches: Caches, clock: Clock) -> None:
        self._accounts: Cache = caches.of("", "serviceaccounts")
        self._clock = clock

    async def mutate(self, a: Attributes) -> None:
        if a.operation != "CREATE":
            await self.validate(a)
            return
        pod = a.object
        spec = pod["spec"]
        if MIRROR_POD in annotations_of(pod):
            _check_mirror_pod(a, pod)
            return
        if not spec.get("serviceAccountName"):
            spec["serviceAccountName"] = spec["serviceAccount"] = DEFAULT_ACCOUNT
        account = await self._account_of(a, spec)
        if _should_mount(account, spec):
            mount_token(spec)
        if not spec.get("imagePullSecrets") and (secrets := account.get("imagePullSecrets")):
            spec["imagePullSecrets"] = [{"name": secret.get("name", "")} for secret in secrets]
        _check_secrets(a, account, spec)

    async def validate(self, a: Attributes) -> None:
        pod = a.object
        spec = pod["spec"]
        if a.operation == "UPDATE":
            if a.subresource == "ephemeralcontainers":
                account = await self._account_of(a, spec)
                if _limits_secrets(account):
                    mountable = {ref.get("name") for ref in account.get("secrets") or ()}
                    _check_environment(a, account, spec, "ephemeralContainers", mountable)
            return
        if MIRROR_POD in annotations_of(pod):
            _check_mirror_pod(a, pod)
            return
        _check_secrets(a, await self._account_of(a, spec), spec)

    async def _account_of(self, a: Attributes, spec: Object) -> Object:
        name = spec.get("serviceAccountName", "")
        if not name:
            raise a.refuse(f"no service account specified for pod {a.namespace}/{name_of(a.object)}")
        entry = self._accounts.get(a.namespace, name)
        if entry is None and name == DEFAULT_ACCOUNT:
            await self._wait_for(a.namespace, name)
            entry = self._accounts.get(a.namespace, name)
        if entry is None:
            raise a.refuse(f'error looking up service account {a.namespace}/{name}: serviceaccount "{name}" not found')
        return entry.obj

    async def _wait_for(self, namespace: str, name: str) -> None:
        """Until the account is there, at most WAIT_FOR_DEFAULT_S."""
        seen = asyncio.Event()

        def look(_event: Any) -> None:
            if self._accounts.get(namespace, name) is not None:
                seen.set()

        unsubscribe = self._accounts.subscribe(look)
        timer = asyncio.ensure_future(self._clock.sleep(WAIT_FOR_DEFAULT_S))
        waiting = asyncio.ensure_future(seen.wait())
        try:
            await asyncio.wait((timer, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            unsubscribe()
            timer.cancel()
            waiting.cancel()


def mount_token(spec: Object) -> None:
    """Mount the account's token, the cluster's CA and the namespace into every container that has nothing there."""
    volumes: list[Object] = spec.get("volumes") or []
    existing = next((v["name"] for v in volumes if v.get("name", "").startswith(VOLUME_PREFIX)), "")
    name = existing or generate_name(VOLUME_PREFIX, "".join(random.choices(NAME_ALPHABET, k=5)))
    mount = {"name": name, "readOnly": True, "mountPath": TOKEN_MOUNT_PATH}
    needed = False
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        mounts = container.get("volumeMounts") or []
        if not any(m.get("mountPath") == TOKEN_MOUNT_PATH for m in mounts):
            container["volumeMounts"] = [*mounts, dict(mount)]
            needed = True
    if needed and not existing:
        spec["volumes"] = [*volumes, {"name": name, "projected": token_volume()}]


def token_volume() -> Object:
    """The projected volume source of the account's token."""
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_EXPIRATION_S, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [namespace]}},
        ],
        "defaultMode": 0o644,
    }


def _should_mount(account: Object, spec: Object) -> bool:
    """The pod's word goes before the account's; without either, yes."""
    for holder in (spec, account):
        wanted = holder.get("automountServiceAccountToken")
        if wanted is not None:
            return bool(wanted)
    return True


def _check_mirror_pod(a: Attributes, pod: Object) -> None:
    spec = pod["spec"]
    if spec.get("serviceAccountName"):
        raise a.refuse("a mirror pod may not reference service accounts")
    if any(True for _ in secret_names(pod)):
        raise a.refuse("a mirror pod may not reference secrets")
    for volume in spec.get("volumes") or ():
        for source in dig(volume, "projected", "sources", default=()):
            if source.get("serviceAccountToken") is not None:
                raise a.refuse("a mirror pod may not use ServiceAccountToken volume projections")


def _limits_secrets(account: Object) -> bool:
    # strconv.ParseBool's notion of true
    return annotations_of(account).get(ENFORCE_MOUNTABLE_SECRETS) in ("1", "t", "T", "TRUE", "true", "True")


def _check_secrets(a: Attributes, account: Object, spec: Object) -> None:
    """Where the account is annotated so: the pod may name the account's own secrets only."""
    if not _limits_secrets(account):
        return
    who = name_of(account)
    mountable = {ref.get("name") for ref in account.get("secrets") or ()}
    for volume in spec.get("volumes") or ():
        secret = dig(volume, "secret", "secretName")
        if secret is not None and secret not in mountable:
            raise a.refuse(
                f'volume with secret.secretName="{secret}" is not allowed because '
                f"service account {who} does not reference that secret"
            )
    for kind in ("initContainers", "containers"):
        _check_environment(a, account, spec, kind, mountable)
    pullable = {ref.get("name") for ref in account.get("imagePullSecrets") or ()}
    for i, ref in enumerate(spec.get("imagePullSecrets") or ()):
        if ref.get("name") not in pullable:
            raise a.refuse(
                f'imagePullSecrets[{i}].name="{ref.get("name", "")}" is not allowed because '
                f"service account {who} does not reference that imagePullSecret"
            )


_TITLES = {
    "initContainers": "init container",
    "containers": "container",
    "ephemeralContainers": "ephemeral container",
}


def _check_environment(a: Attributes, account: Object, spec: Object, kind: str, mountable: set[Any]) -> None:
    for container in spec.get(kind) or ():
        for how, secret in _environment_secrets(container):
            if secret not in mountable:
                raise a.refuse(
                    f'{_TITLES[kind]} {container.get("name", "")} with {how} referencing secret.secretName="{secret}" '
                    f"is not allowed because service account {name_of(account)} does not reference that secret"
                )


def _environment_secrets(container: Object) -> Iterator[tuple[str, str]]:
    for variable in container.get("env") or ():
        secret = dig(variable, "valueFrom", "secretKeyRef", "name")
        if secret is not None:
            yield f"envVar {variable.get('name', '')}", secret
    for source in container.get("envFrom") or ():
        if (ref := source.get("secretRef")) is not None:
            yield "envFrom", ref.get("name", "")
