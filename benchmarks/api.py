"""The API server alone: 2,300 pods stored, 16 connections, TLS, durable writes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import load
from benchmarks.load import Target
from benchmarks.report import Figure

PODS = 2300
BIN = Path(sys.executable).parent
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p{n}", "labels": {"app": "bench"}},
    "spec": {
        "automountServiceAccountToken": False,
        "containers": [{"name": "c", "image": "registry.example/app:1", "ports": [{"containerPort": 80}]}],
    },
}
PODS_PATH = "/api/v1/namespaces/default/pods"


@contextmanager
def bare_api(disable: str) -> Iterator[tuple[Target, subprocess.Popen[str], Path, float]]:
    """A server on a free port: (target, process, data directory, ms to its ready line)."""
    with tempfile.TemporaryDirectory(prefix="kone-bench-") as folder:
        data = Path(folder) / "data"
        command = [
            str(BIN / "kone"),
            "server",
            "--data-dir",
            str(data),
            "--secure-port",
            "0",
            "--bind-address",
            "127.0.0.1",
        ]
        began = time.perf_counter()
        with open(Path(folder) / "log", "w") as log:
            process = subprocess.Popen([*command, "--disable", disable], stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        took_ms = (time.perf_counter() - began) * 1000
        try:
            port = int(line.split()[3].rsplit(":", 1)[1])
            yield Target("127.0.0.1", port, load.token_of(data / "admin.kubeconfig")), process, data, took_ms
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


@contextmanager
def bare_aiohttp(data: Path) -> Iterator[Target]:
    pair = [str(data / "pki" / "apiserver.crt"), str(data / "pki" / "apiserver.key")]
    command = [sys.executable, "-m", "benchmarks.bare_server", *pair]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Target("127.0.0.1", int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_percent(pid: int, seconds: float) -> float:
    """CPU of an idle process, in percent of a core."""
    before = cpu_s(pid)
    time.sleep(seconds)
    return (cpu_s(pid) - before) / seconds * 100


def measure() -> Iterator[Figure]:
    load.ensure_wrk()
    with bare_api("kubelet,proxy,dns") as (_, process, _, took_ms):
        yield Figure("API, controllers, scheduler: ready", took_ms, "ms", 1000, "less")
        time.sleep(3)
        yield Figure("API, controllers, scheduler: resident", resident_mb(process.pid), "MB", 120, "less")
        yield Figure("API, controllers, scheduler: idle", idle_percent(process.pid, 20), "% of core", 0.5, "less")
    with bare_api("controllers,scheduler,kubelet,proxy,dns") as (target, _, data, _):
        yield from _requests(target, data)


def _requests(target: Target, data: Path) -> Iterator[Figure]:
    with bare_aiohttp(data) as bare:
        baseline = load.requests_per_s(bare, "GET", "/")
    for words in (("namespace", "crowd"), ("serviceaccount", "default"), ("serviceaccount", "default", "-n", "crowd")):
        _kubectl(target, "create", *words)
    body = json.dumps(POD)
    crowd = "/api/v1/namespaces/crowd/pods"
    created = load.requests_per_s(target, "POST", crowd, body=body)
    yield Figure("create a pod, durable", created, "/s", 1600, baseline=1195, baseline_name="upstream, recorded")
    _kubectl(target, "delete", "--raw", f"{crowd}?gracePeriodSeconds=0")
    asyncio.run(load.post_many(target, PODS_PATH, [body.replace("{n}", str(n)) for n in range(PODS)]))
    asyncio.run(load.post_many(target, crowd, [body.replace("{n}", str(n)) for n in range(PODS)]))
    paths = [f"{crowd}/p{n}?gracePeriodSeconds=0" for n in range(PODS)]
    deleted = asyncio.run(load.delete_many(target, paths))
    yield Figure("delete a pod, durable", deleted, "/s", 1000, baseline=800, baseline_name="upstream, recorded")
    got = load.requests_per_s(target, "GET", f"{PODS_PATH}/p1")
    yield Figure("get a pod", got, "/s", 10_000, baseline=baseline, baseline_name="bare aiohttp TLS")
    patch = json.dumps({"status": {"message": "m{n}"}})
    patched = load.requests_per_s(
        target, "PATCH", f"{PODS_PATH}/p{{m}}/status", body=patch, content_type="application/merge-patch+json"
    )
    yield Figure("patch a pod's status, durable", patched, "/s", 1150, baseline=850, baseline_name="upstream, recorded")
    listed = asyncio.run(load.milliseconds(target, PODS_PATH))
    yield Figure(f"list of {PODS} pods", listed, "ms", 10, "less", 98, "upstream, recorded")
    events = asyncio.run(
        load.fan_out(
            target,
            f"{PODS_PATH}?watch=1&resourceVersion={_revision(target)}",
            100,
            f"{PODS_PATH}/p2/status",
            json.dumps({"status": {"message": "w{n}"}}),
            3000,
        )
    )
    yield Figure("100 watchers", events, "events/s", 60_000, baseline=44_500, baseline_name="upstream, recorded")


def _kubectl(target: Target, *words: str) -> str:
    flags = ["--server", target.url, "--token", target.token, "--insecure-skip-tls-verify"]
    return subprocess.run([BIN / "kubectl", *flags, *words], capture_output=True, text=True, check=True).stdout


def _revision(target: Target) -> str:
    answer = _kubectl(target, "get", "--raw", f"{PODS_PATH}?limit=1")
    return str(json.loads(answer)["metadata"]["resourceVersion"])
