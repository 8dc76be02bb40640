"""Who may use an image that is here already: what pulled it is on record, and a pod must show as much.

Else a pod without credentials could use what another's have brought to the node. Each image that this kubelet pulled
has a record of the secrets and service accounts that it was pulled with; a pull that is under way has an intent, so
that a kubelet that is killed meanwhile knows afterwards that the image is not the host's own. The files are those of
kubernetes/pkg/kubelet/images/pullmanager: image_manager/pulled and image_manager/pulling.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

from kone.aio.clock import Clock
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.timestamps import format_time, parse_time
from kone.runtime.image_names import without_tag
from kone.runtime.registry_keyring import Credential, Source
from kone.runtime.runtime import Image

log = logging.getLogger(__name__)

API_VERSION: Final = "kubelet.config.k8s.io/v1beta1"
CREDENTIALS_MAX: Final = 100  # a record grows by looking only so far


class Verification(Enum):
    """For which images that are here a pod must show credentials (imagePullCredentialsVerificationPolicy)."""

    NEVER = "NeverVerify"
    NEVER_PRELOADED = "NeverVerifyPreloadedImages"
    NEVER_ALLOWLISTED = "NeverVerifyAllowlistedImages"
    ALWAYS = "AlwaysVerify"


class Policy:
    """`allowlist` (preloadedImagesVerificationAllowlist) holds names without tag, or "registry/path/*".

    Raises ConfigFileError where one is neither.
    """

    def __init__(self, verification: Verification = Verification.NEVER_PRELOADED, allowlist: Iterable[str] = ()):
        self.verification = verification
        self._exact: set[str] = set()
        self._prefixes: list[str] = []
        for pattern in allowlist:
            if (prefix := _pattern(pattern)).endswith("/"):
                self._prefixes.append(prefix)
            else:
                self._exact.add(prefix)

    def must_verify(self, image: str, *, pulled_by_kubelet: bool) -> bool:
        match self.verification:
            case Verification.NEVER:
                return False
            case Verification.NEVER_PRELOADED:
                return pulled_by_kubelet
            case Verification.ALWAYS:
                return True
        name = without_tag(image)
        return name not in self._exact and not name.startswith(tuple(self._prefixes))


def _pattern(pattern: str) -> str:
    trimmed = pattern.removesuffix("*") if pattern.endswith("/*") else pattern
    if pattern != pattern.strip():
        raise ConfigFileError(f"leading/trailing spaces are not allowed: {pattern}")
    if not trimmed:
        raise ConfigFileError(f"the supplied pattern is too short: {pattern}")
    if "*" in trimmed:
        raise ConfigFileError(f"not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}")
    if trimmed == "/":
        raise ConfigFileError("at least registry hostname is required")
    if trimmed == pattern and without_tag(pattern) != pattern:
        raise ConfigFileError(f"neither tag nor digest is accepted in an image reference: {pattern}")
    return trimmed


class PullRecords:
    """The records of this kubelet, read once and written through."""

    def __init__(self, root: Path, clock: Clock, policy: Policy) -> None:
        self._pulled_dir, self._pulling_dir = (root / "image_manager" / name for name in ("pulled", "pulling"))
        self._clock, self._policy = clock, policy
        self._records: dict[str, Object] = {}
        self._intents: Counter[str] = Counter()  # pulls under way, by image
        self._left: set[str] = set()  # intents of a kubelet that ended meanwhile

    def load(self, images: Sequence[Image]) -> None:
        """Read what is there. A pull that was cut off and came through all the same has brought its image: it can be
        used by whoever shows credentials."""
        for folder in (self._pulled_dir, self._pulling_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for record in _read_all(self._pulled_dir, "ImagePulledRecord"):
            self._records[record.get("imageRef", "")] = record
        self._left = {intent.get("image", "") for intent in _read_all(self._pulling_dir, "ImagePullIntent")}
        for image in images:
            for name in self._left.intersection((*image.digests, *image.tags)):
                self._merge(name, image.id, None)
                self._drop_intent(name)

    def is_free(self, name: str, image_id: str) -> bool:
        """Whether any pod may use the image as it is here, without showing anything."""
        if not self._policy.must_verify(name, pulled_by_kubelet=self._is_pulled(name, image_id)):
            return True
        return bool(dig(self._credentials(name, image_id), "nodePodsAccessible", default=False))

    def must_pull(self, name: str, image_id: str, credentials: Iterable[Credential]) -> bool:
        """Whether a pod with these credentials must show at the registry that it may have the image, which is here and
        not free."""
        known = self._credentials(name, image_id)
        secrets, accounts = known.get("kubernetesSecrets") or [], known.get("kubernetesServiceAccounts") or []
        account: Source | None = None
        for credential in credentials:
            source = credential.source
            if source is None:
                continue
            if source.kind == "ServiceAccount":
                account = account or source
            elif self._is_known(name, image_id, credential, secrets):
                return False
        return account is None or _coordinates(account) not in accounts

    def _is_known(self, name: str, image_id: str, credential: Credential, secrets: Sequence[Object]) -> bool:
        """Whether the image was pulled with that secret, or with another of the same content."""
        shown = dig(_as_credentials(credential), "kubernetesSecrets", 0)
        for secret in secrets:
            same_content = secret.get("credentialHash") == shown["credentialHash"]
            same_place = all(secret.get(key) == shown[key] for key in ("uid", "namespace", "name"))
            if same_content or same_place:
                if not (same_content and same_place) and len(secrets) < CREDENTIALS_MAX:
                    self._remember(name, image_id, credential)
                return True
        return False

    def _remember(self, name: str, image_id: str, credential: Credential) -> None:
        try:
            self._merge(name, image_id, _as_credentials(credential))
        except OSError as error:
            log.error("who may use image %s is not written: %s", image_id, error)

    def begin(self, name: str) -> None:
        """A pull begins. Raises OSError where that cannot be written."""
        _write(self._pulling_dir, name, {"kind": "ImagePullIntent", "apiVersion": API_VERSION, "image": name})
        self._intents[name] += 1

    def failed(self, name: str) -> None:
        self._end(name)

    def pulled(self, name: str, image_id: str, credential: Credential | None) -> None:
        """The image is here, by this credential."""
        try:
            self._merge(name, image_id, _as_credentials(credential))
        except OSError as error:  # its intent stays, so it counts as pulled
            log.error("that image %s was pulled is not written: %s", image_id, error)
            return
        self._end(name)

    def keep_only(self, image_ids: Iterable[str], at: float) -> None:
        """Forget images that were not here at that time (Unix seconds) and have not come since."""
        for image_id in self._records.keys() - set(image_ids):
            if parse_time(self._records[image_id]["lastUpdatedTime"]) < int(at):
                del self._records[image_id]
                _path(self._pulled_dir, image_id).unlink(missing_ok=True)

    # ---- inside

    def _is_pulled(self, name: str, image_id: str) -> bool:
        return image_id in self._records or self._intents[name] > 0 or name in self._left

    def _credentials(self, name: str, image_id: str) -> Object:
        found: Object = dig(self._records.get(image_id, {}), "credentialMapping", without_tag(name), default={})
        return found

    def _end(self, name: str) -> None:
        self._intents[name] -= 1
        if self._intents[name] <= 0:
            del self._intents[name]
            self._drop_intent(name)

    def _drop_intent(self, name: str) -> None:
        self._left.discard(name)
        try:
            _path(self._pulling_dir, name).unlink(missing_ok=True)
        except OSError as error:
            log.error("that the pull of %s has ended is not written: %s", name, error)

    def _merge(self, name: str, image_id: str, more: Object | None) -> None:
        """Raises OSError."""
        record = self._records.get(image_id)
        before = dict(dig(record or {}, "credentialMapping", default={}))
        mapping = (
            before if more is None else {**before, without_tag(name): _merged(before.get(without_tag(name)), more)}
        )
        if record is not None and mapping == record.get("credentialMapping"):
            return
        record = {
            "kind": "ImagePulledRecord",
            "apiVersion": API_VERSION,
            "lastUpdatedTime": format_time(self._clock.now()),
            "imageRef": image_id,
            "credentialMapping": mapping,
        }
        self._records[image_id] = record
        _write(self._pulled_dir, image_id, record)


def _as_credentials(credential: Credential | None) -> Object:
    source = credential.source if credential is not None else None
    if credential is None or source is None:
        return {"nodePodsAccessible": True}
    if source.kind == "Secret":
        return {"kubernetesSecrets": [{**_coordinates(source), "credentialHash": credential.digest}]}
    return {"kubernetesServiceAccounts": [_coordinates(source)]}


def _merged(old: Object | None, new: Object) -> Object:
    """What was on record and what comes: one entry for each object, its newest content."""
    if old is None or new.get("nodePodsAccessible"):
        return new
    if old.get("nodePodsAccessible"):
        return old
    merged = dict(old)
    for field in ("kubernetesSecrets", "kubernetesServiceAccounts"):
        entries = {
            (entry["namespace"], entry["name"], entry["uid"]): entry
            for entry in [*(old.get(field) or ()), *(new.get(field) or ())]
        }
        if entries:
            merged[field] = [entries[place] for place in sorted(entries)]
    return merged


def _coordinates(source: Source) -> Object:
    return {"uid": source.uid, "namespace": source.namespace, "name": source.name}


def _path(folder: Path, name: str) -> Path:
    return folder / f"sha256-{hashlib.sha256(name.encode()).hexdigest()}"


def _write(folder: Path, name: str, content: Object) -> None:
    path = _path(folder, name)
    fresh = path.with_name(path.name + ".tmp")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(content))
    fresh.rename(path)


def _read_all(folder: Path, kind: str) -> list[Object]:
    found = []
    for path in sorted(folder.glob("sha256-*")):
        if path.suffix == ".tmp":
            continue
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            log.error("%s cannot be read: %s", path, error)
            continue
        if isinstance(content, dict) and content.get("kind") == kind:
            found.append(content)
    return found
