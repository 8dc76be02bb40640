"""Programs that others write, unchanged against a Cluster: the official Python client, kubernetes_asyncio, and a kopf
operator.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Any

import kopf
import kubernetes
import kubernetes_asyncio
import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, CUSTOMRESOURCEDEFINITIONS, DEPLOYMENTS, GVR, PODS
from kone.apimachinery.objects import Object
from kone.testing import Cluster

WIDGETS = GVR("example.com", "v1", "widgets")
DEFINITION: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


@pytest.fixture
async def cluster() -> Any:
    async with Cluster(scheduler=False) as running:
        yield running


async def eventually(look: Any) -> Any:
    """The first true value of `await look()` in 60 s; a StatusError counts as none yet."""
    for _ in range(1200):
        with contextlib.suppress(StatusError):
            if found := await look():
                return found
        await asyncio.sleep(0.05)
    raise AssertionError("not within 60 s")


async def test_the_official_client(cluster: Cluster) -> None:
    """Synchronous, so it runs in a thread beside the cluster's loop."""

    def use() -> None:
        api = kubernetes.config.new_client_from_config(str(cluster.kubeconfig))
        core, apps = kubernetes.client.CoreV1Api(api), kubernetes.client.AppsV1Api(api)
        labels = {"app": "web"}
        container = kubernetes.client.V1Container(name="c", image="i", ports=[{"containerPort": 80}])
        template = kubernetes.client.V1PodTemplateSpec(
            metadata=kubernetes.client.V1ObjectMeta(labels=labels),
            spec=kubernetes.client.V1PodSpec(containers=[container]),
        )
        deployment = kubernetes.client.V1Deployment(
            metadata=kubernetes.client.V1ObjectMeta(name="web"),
            spec=kubernetes.client.V1DeploymentSpec(
                replicas=2, selector=kubernetes.client.V1LabelSelector(match_labels=labels), template=template
            ),
        )
        made = apps.create_namespaced_deployment("default", deployment)
        assert made.spec.strategy.rolling_update.max_surge == "25%"
        watch = kubernetes.watch.Watch()
        seen = set()
        for event in watch.stream(core.list_namespaced_pod, "default", label_selector="app=web", timeout_seconds=30):
            seen.add(event["object"].metadata.name)
            if len(seen) == 2:
                watch.stop()
        page = core.list_namespaced_pod("default", limit=1)
        assert len(page.items) == 1
        assert page.metadata._continue
        apps.patch_namespaced_deployment_scale("web", "default", {"spec": {"replicas": 1}})
        assert apps.read_namespaced_deployment_scale("web", "default").spec.replicas == 1
        with pytest.raises(kubernetes.client.ApiException) as caught:
            core.read_namespaced_secret("nothing", "default")
        assert caught.value.status == 404
        secret = kubernetes.client.V1Secret(
            metadata=kubernetes.client.V1ObjectMeta(name="s"), data={"k": base64.b64encode(b"v").decode()}
        )
        core.create_namespaced_secret("default", secret)
        assert core.read_namespaced_secret("s", "default").data == {"k": "dg=="}
        kubernetes.utils.create_from_dict(
            api, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}}
        )
        dynamic = kubernetes.dynamic.DynamicClient(api)
        jobs = dynamic.resources.get(api_version="batch/v1", kind="Job")
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "j"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
        }
        applied = dynamic.server_side_apply(jobs, body=job, namespace="default", field_manager="me")
        assert applied.metadata.managedFields[0].manager == "me"
        core.delete_namespaced_secret("s", "default")
        version = kubernetes.client.VersionApi(api).get_code()
        assert (version.major, version.minor) == ("1", "37")
        api.close()

    await asyncio.to_thread(use)
    assert await cluster.client.get(DEPLOYMENTS, "web", "default")
    assert await cluster.client.get(CONFIGMAPS, "c", "default")


async def test_kubernetes_asyncio(cluster: Cluster) -> None:
    await kubernetes_asyncio.config.load_kube_config(str(cluster.kubeconfig))
    async with kubernetes_asyncio.client.ApiClient() as api:
        core = kubernetes_asyncio.client.CoreV1Api(api)
        pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        made = await core.create_namespaced_pod("default", pod)
        assert made.spec.restart_policy == "Always"
        async with kubernetes_asyncio.watch.Watch() as watch, asyncio.timeout(60):
            async for event in watch.stream(core.list_namespaced_pod, "default", timeout_seconds=30):
                if event["type"] == "DELETED":
                    break
                if event["type"] == "ADDED":
                    await core.delete_namespaced_pod("p", "default", grace_period_seconds=0)
        custom = kubernetes_asyncio.client.CustomObjectsApi(api)
        await cluster.client.create(CUSTOMRESOURCEDEFINITIONS, DEFINITION)
        widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"a": [1]}}

        async def created() -> Any:
            try:
                return await custom.create_namespaced_custom_object("example.com", "v1", "default", "widgets", widget)
            except kubernetes_asyncio.client.ApiException:  # until its definition is established
                return None

        await eventually(created)
        listed = await custom.list_namespaced_custom_object("example.com", "v1", "default", "widgets")
        assert [each["spec"] for each in listed["items"]] == [{"a": [1]}]
    assert await cluster.client.list(PODS, "default") == []


async def test_a_kopf_operator(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(kopf.login_with_kubeconfig)

    @kopf.on.create("example.com", "v1", "widgets", id="made", registry=registry)
    async def made(spec: kopf.Spec, name: str, namespace: str, patch: kopf.Patch, **_: Any) -> Object:
        child: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"size": str(spec["size"])},
        }
        kopf.adopt(child)
        await cluster.client.create(CONFIGMAPS, child, namespace=namespace)
        return {"size": spec["size"]}

    @kopf.on.field("example.com", "v1", "widgets", field="spec.size", old=kopf.PRESENT, registry=registry)
    async def resized(old: int, new: int, patch: kopf.Patch, **_: Any) -> None:
        patch.status["resized"] = [old, new]

    @kopf.on.delete("example.com", "v1", "widgets", registry=registry)
    async def gone(name: str, **_: Any) -> None:
        left.append(name)

    left: list[str] = []
    await cluster.client.create(CUSTOMRESOURCEDEFINITIONS, DEFINITION)
    settings = kopf.OperatorSettings()
    settings.posting.enabled = True
    stop, ready = asyncio.Event(), asyncio.Event()
    operator = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=settings,
            namespaces=["default"],
            stop_flag=stop,
            ready_flag=ready,
            standalone=True,
        )
    )
    try:
        async with asyncio.timeout(60):
            await ready.wait()
        widget: Object = {
            "apiVersion": "example.com/v1",
            "kind": "Widget",
            "metadata": {"name": "w"},
            "spec": {"size": 1},
        }

        async def created() -> Any:
            return await cluster.client.create(WIDGETS, widget, namespace="default")

        await eventually(created)

        async def status() -> Any:
            return (await cluster.client.get(WIDGETS, "w", "default")).get("status") or {}

        async def said(key: str) -> Any:
            return (await status()).get(key)

        assert await eventually(lambda: said("made")) == {"size": 1}
        child = await cluster.client.get(CONFIGMAPS, "w", "default")
        assert child["metadata"]["ownerReferences"][0]["kind"] == "Widget"
        await cluster.client.patch(WIDGETS, "w", {"spec": {"size": 5}}, namespace="default")
        assert await eventually(lambda: said("resized")) == [1, 5]
        finalizers = (await cluster.client.get(WIDGETS, "w", "default"))["metadata"]["finalizers"]
        assert finalizers == ["kopf.zalando.org/KopfFinalizerMarker"]
        await cluster.client.delete(WIDGETS, "w", namespace="default")

        async def is_gone() -> bool:
            return not await cluster.client.list(WIDGETS, "default")

        await eventually(is_gone)
        assert left == ["w"]
    finally:
        stop.set()
        await operator
