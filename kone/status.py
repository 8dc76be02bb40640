"""`kone status`: how the node is, asked over the local door (the unix socket), so it works without a kubeconfig."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass, field
from typing import Any

from kone.config import PROXY_MODE, Settings

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """What `kone status` says: the /readyz checks that fail, how each node is, how many pods are in which phase."""

    data_dir: str
    running: bool
    ready: bool = False
    version: str = ""
    checks_failing: list[str] = field(default_factory=list)
    nodes: dict[str, str] = field(default_factory=dict)
    pods: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    proxy_modes: dict[str, str] = field(default_factory=dict)  # by node


class UnixConnection(http.client.HTTPConnection):
    """http.client over a unix socket."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path, self._timeout_s = path, timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


def _ask(settings: Settings, path: str) -> tuple[int, bytes]:
    connection = UnixConnection(str(settings.socket_path))
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def collect(settings: Settings) -> Report:
    """Ask the running node; never raises: what does not answer is in `problem`."""
    try:
        code, ready = _ask(settings, "/readyz?verbose")
        version: dict[str, Any] = json.loads(_ask(settings, "/version")[1])
        nodes = json.loads(_ask(settings, "/api/v1/nodes")[1]).get("items", [])
        pods = json.loads(_ask(settings, "/api/v1/pods")[1]).get("items", [])
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Report(settings.data_dir, running=False, problem=f"{settings.socket_path}: {error}")
    failing = [line[3:].split()[0] for line in ready.decode().splitlines() if line.startswith("[-]")]
    phases: dict[str, int] = {}
    for pod in pods:
        phase = pod.get("status", {}).get("phase", "Pending")
        phases[phase] = phases.get(phase, 0) + 1
    reasons = {node["metadata"]["name"]: _readiness(node) for node in nodes}
    healthy = code == 200 and all(reason.startswith("Ready") for reason in reasons.values())
    modes = {n["metadata"]["name"]: n["metadata"].get("annotations", {}).get(PROXY_MODE, "") for n in nodes}
    return Report(
        settings.data_dir,
        True,
        healthy,
        version.get("gitVersion", ""),
        failing,
        reasons,
        phases,
        proxy_modes={name: mode for name, mode in modes.items() if mode},
    )


def _readiness(node: dict[str, Any]) -> str:
    for condition in node.get("status", {}).get("conditions", []):
        if condition["type"] == "Ready":
            if condition["status"] == "True":
                return "Ready"
            return f"NotReady: {condition.get('reason', '')}: {condition.get('message', '')}"
    return "NotReady: no Ready condition yet"


def render(report: Report) -> str:
    """The report as a few lines for a person."""
    if not report.running:
        return f"kone is not running on {report.data_dir} ({report.problem})"
    lines = [f"kone is {'ready' if report.ready else 'not ready'} on {report.data_dir} (Kubernetes {report.version})"]
    lines += [f"failing check: {name}" for name in report.checks_failing]
    lines += [
        f"node {name}: {reason}" + (f", Services by {mode}" if (mode := report.proxy_modes.get(name)) else "")
        for name, reason in report.nodes.items()
    ]
    lines.append("pods: " + (", ".join(f"{n} {phase}" for phase, n in sorted(report.pods.items())) or "none"))
    return "\n".join(lines)
