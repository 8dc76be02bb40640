"""/statusz and /flagz of the kubelet: since when it runs as what, and what it was told. Pure.

As text for people, or as an object of config.k8s.io/v1beta1 for those who ask for one by name
(`Accept: application/json;as=Statusz;v=v1beta1;g=config.k8s.io`). Rules: k8s.io/apiserver/pkg/server/statusz and flagz.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import format_time, go_duration
from kone.runtime.kubelet_config import KubeletConfig

API_VERSION: Final = "config.k8s.io/v1beta1"
COMPONENT: Final = "kubelet"
Kind = Literal["Statusz", "Flagz"]
_WARNING: Final = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is "
    "for debugging purposes only."
)


def wants_object(accept: str, kind: Kind) -> bool:
    """Whether an Accept header asks for the object rather than the text. Raises StatusError 406 for anything else."""
    ranges = [part.strip() for part in accept.split(",") if part.strip()]
    for wanted in ranges:
        media, *parameters = (part.strip() for part in wanted.split(";"))
        said = dict(parameter.partition("=")[::2] for parameter in parameters)
        if media in ("text/plain", "text/*", "*/*"):
            return False
        if media == "application/json" and (said.get("as"), said.get("g"), said.get("v")) == (
            kind,
            *API_VERSION.split("/"),
        ):
            return True
    if not ranges:
        return False
    offers = f"application/json;as={kind};v=v1beta1;g=config.k8s.io, text/plain"
    raise StatusError(406, "NotAcceptable", f"only the following media types are accepted: {offers}")


def statusz(started_at: float, now: float, runs_on: str, version: str, paths: Sequence[str]) -> Object:
    """`runs_on` is the interpreter, where upstream has Go; times are Unix seconds."""
    return {
        "kind": "Statusz",
        "apiVersion": API_VERSION,
        "metadata": {"name": COMPONENT},
        "startTime": format_time(started_at),
        "uptimeSeconds": int(now - started_at),
        "goVersion": runs_on,
        "binaryVersion": version,
        "emulationVersion": version,
        "paths": list(paths),
    }


def statusz_text(found: Object, started_at: float) -> str:
    started = datetime.fromtimestamp(started_at, UTC).strftime("%a %b %e %H:%M:%S UTC %Y")
    return (
        f"\n{COMPONENT} statusz\n{_WARNING}\n\nStarted: {started}\nUp: {go_duration(found['uptimeSeconds'])}\n"
        f"Go version: {found['goVersion']}\nBinary version: {found['binaryVersion']}\n"
        f"Emulation version: {found['emulationVersion']}\nPaths: {' '.join(found['paths'])}\n"
    )


def flags(config: KubeletConfig) -> Mapping[str, str]:
    """What the kubelet was told, by the names of kone's flags."""
    return {
        "cluster-dns": config.cluster_dns,
        "cluster-domain": config.cluster_domain,
        "image-pull-credentials-verification": config.pull_policy.verification.value,
        "instance": config.instance,
        "kubelet-port": str(config.port),
        "max-pods": str(config.max_pods),
        "node-ip": ",".join(config.node_ips),
        "node-name": config.node_name,
    }


def flagz(told: Mapping[str, str]) -> Object:
    return {"kind": "Flagz", "apiVersion": API_VERSION, "metadata": {"name": COMPONENT}, "flags": dict(told)}


def flagz_text(told: Mapping[str, str]) -> str:
    return f"\n{COMPONENT} flagz\n{_WARNING}\n" + "".join(f"{name}={value}\n" for name, value in sorted(told.items()))
