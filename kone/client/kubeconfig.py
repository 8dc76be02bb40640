"""Reading a kubeconfig: the server of its current context, whom to trust, and who we are."""

from __future__ import annotations

import base64
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class KubeconfigError(Exception):
    """The file cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What a client needs to know. PEM texts are empty where the kubeconfig has none."""

    server: str
    namespace: str = "default"
    ca_pem: str = ""
    insecure: bool = False
    tls_server_name: str = ""
    token: str = ""
    token_file: str = ""
    client_cert_pem: str = ""
    client_key_pem: str = ""

    def ssl_context(self) -> ssl.SSLContext:
        """Raises ssl.SSLError where a certificate cannot be read."""
        context = ssl.create_default_context(cadata=self.ca_pem or None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert_pem:
            load_pair(context, self.client_cert_pem, self.client_key_pem)
        return context


@dataclass(frozen=True, slots=True)
class Identity:
    """How a user of a kubeconfig shows who it is; what it does not use is empty."""

    token: str = ""
    username: str = ""
    password: str = ""
    client_cert_pem: str = ""
    client_key_pem: str = ""


def load_pair(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
    """Show this client certificate. Raises ssl.SSLError where it cannot be read."""
    # The ssl module reads key pairs from files only.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pair:
        pair.write(cert_pem.rstrip() + "\n" + key_pem)
        pair.flush()
        context.load_cert_chain(pair.name)


def load_identities(path: Path | str) -> tuple[Mapping[str, Identity], str]:
    """The users by name, and the name of the current context's ("" where there is none). Raises KubeconfigError."""
    path = Path(path)
    config = _read(path)
    users = {str(each.get("name")): _identity(each.get("user") or {}, path) for each in config.get("users") or ()}
    current = str(config.get("current-context") or "")
    contexts = {each.get("name"): each.get("context") or {} for each in config.get("contexts") or ()}
    return users, str((contexts.get(current) or {}).get("user") or "")


def _identity(user: Mapping[str, Any], path: Path) -> Identity:
    token = str(user.get("token") or "")
    if not token and user.get("tokenFile"):
        file = _beside(path, user["tokenFile"])
        try:
            token = file.read_text().strip()
        except OSError as error:
            raise KubeconfigError(f"{file}: {error.strerror}") from None
    return Identity(
        token,
        str(user.get("username") or ""),
        str(user.get("password") or ""),
        _pem(user, "client-certificate", path),
        _pem(user, "client-key", path),
    )


def load_kubeconfig(path: Path | str, *, context: str = "") -> Connection:
    """The connection of a context, by default the current one. Raises KubeconfigError."""
    path = Path(path)
    config = _read(path)
    chosen = context or str(config.get("current-context") or "")
    where = _named(config, "contexts", "context", chosen, path)
    cluster = _named(config, "clusters", "cluster", str(where.get("cluster") or ""), path)
    user = _named(config, "users", "user", str(where.get("user") or ""), path) if where.get("user") else {}
    if not cluster.get("server"):
        raise KubeconfigError(f"{path}: the cluster of context {chosen!r} has no server")
    return Connection(
        server=str(cluster["server"]).rstrip("/"),
        namespace=str(where.get("namespace") or "default"),
        ca_pem=_pem(cluster, "certificate-authority", path),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        tls_server_name=str(cluster.get("tls-server-name") or ""),
        token=str(user.get("token") or ""),
        token_file=str(_beside(path, user["tokenFile"])) if user.get("tokenFile") else "",
        client_cert_pem=_pem(user, "client-certificate", path),
        client_key_pem=_pem(user, "client-key", path),
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise KubeconfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise KubeconfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(config, Mapping):
        raise KubeconfigError(f"{path} is no kubeconfig")
    return config


def _named(config: Mapping[str, Any], section: str, field: str, name: str, path: Path) -> Mapping[str, Any]:
    for entry in config.get(section) or ():
        if entry.get("name") == name:
            return entry.get(field) or {}
    raise KubeconfigError(f"{path} has no entry {name!r} in {section}")


def _pem(section: Mapping[str, Any], field: str, path: Path) -> str:
    """Inline as base64 in "<field>-data", or in the file that "<field>" names beside the kubeconfig."""
    try:
        if data := section.get(f"{field}-data"):
            return base64.b64decode(data).decode()
        if name := section.get(field):
            return _beside(path, name).read_text()
    except OSError as error:
        raise KubeconfigError(f"{path}: {field}: {error.strerror}") from None
    except ValueError as error:
        raise KubeconfigError(f"{path}: {field}-data: {error}") from None
    return ""


def _beside(path: Path, name: str) -> Path:
    return path.parent / name
