"""How the API server shows webhooks who it is: the users of a kubeconfig, each named after the host it is for.

A user is named "host:port", or "host" for port 443, or "*.domain" for all below it; "*" is for all others, and else the
current context's user is taken (k8s.io/apiserver, pkg/util/webhook/authentication.go).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from kone.client.kubeconfig import Identity, load_identities

ANONYMOUS = Identity()


class WebhookUsers:
    """The users of one kubeconfig."""

    def __init__(self, users: Mapping[str, Identity], current: str = "") -> None:
        self._users, self._current = users, current

    @classmethod
    def read(cls, path: Path | str) -> WebhookUsers:
        """Raises KubeconfigError."""
        return cls(*load_identities(path))

    def of(self, host: str, port: int) -> Identity:
        """Who the server is to the webhook at this address."""
        return next((self._users[name] for name in self._names(host, port) if name in self._users), ANONYMOUS)

    def _names(self, host: str, port: int) -> Iterator[str]:
        for target in (f"{host}:{port}", host) if port == 443 else (f"{host}:{port}",):
            yield target
            steps = target.split(".")
            yield from ("*." + ".".join(steps[i:]) for i in range(1, len(steps)))
        yield "*"
        yield self._current
