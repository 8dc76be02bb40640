"""The Cluster that authors of operators get: whole, quick, and several at once."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.request
from typing import Any

import pytest
import yaml

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, DEPLOYMENTS, PODS
from kone.apimachinery.objects import Object
from kone.testing import Cluster

DEPLOYMENT: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "registry.example/app:1"}]},
        },
    },
}


async def test_controllers_run_in_it(kone_cluster: Cluster) -> None:
    pods = kone_cluster.client.informer(PODS)
    both = asyncio.Event()
    pods.subscribe(lambda *_: both.set() if len(pods.list("default")) == 2 else None)
    await kone_cluster.client.create(DEPLOYMENTS, DEPLOYMENT, namespace="default")
    async with asyncio.timeout(5):
        await both.wait()
    assert {pod["metadata"]["labels"]["app"] for pod in pods.list("default")} == {"web"}


async def test_several_run_at_once_and_share_nothing() -> None:
    async with Cluster() as one, Cluster() as two:
        assert one.url != two.url
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}}
        await one.client.create(CONFIGMAPS, obj, namespace="default")
        with pytest.raises(StatusError) as caught:
            await two.client.get(CONFIGMAPS, "mine", "default")
        assert caught.value.reason == "NotFound"


async def test_its_kubeconfig_opens_the_same_api_over_https() -> None:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}, "data": {"a": "b"}}
        await cluster.client.create(CONFIGMAPS, obj, namespace="default")
        view = yaml.safe_load(cluster.kubeconfig.read_text())
        token = view["users"][0]["user"]["token"]

        def fetch() -> Any:
            path = f"{cluster.url}/api/v1/namespaces/default/configmaps/mine"
            request = urllib.request.Request(path, headers={"Authorization": f"Bearer {token}"})
            trust = ssl.create_default_context(cafile=str(cluster.kubeconfig.parent / "pki" / "ca.crt"))
            with urllib.request.urlopen(request, context=trust) as answer:
                return json.load(answer)

        assert (await asyncio.to_thread(fetch))["data"] == {"a": "b"}


async def test_outside_the_context_it_says_so() -> None:
    cluster = Cluster()
    with pytest.raises(RuntimeError, match="async with"):
        _ = cluster.client
