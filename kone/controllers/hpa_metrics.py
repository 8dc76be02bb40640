"""Where autoscalers read: the resource metrics API, and the custom and external ones where the cluster has them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object, dig, name_of
from kone.apimachinery.quantity import parse_quantity
from kone.apimachinery.timestamps import parse_time
from kone.client.client import Reader
from kone.controllers.controller import Settings
from kone.controllers.hpa_rules import MetricError, PodMetric, PodMetrics

POD_METRICS = GVR("metrics.k8s.io", "v1beta1", "pods")
_CUSTOM, _EXTERNAL = "custom.metrics.k8s.io", "external.metrics.k8s.io"
_DEFAULT_WINDOW_S = 60.0
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

GetPath = Callable[[str, Mapping[str, str]], Awaitable[Object]]


class Metrics:
    """Every method raises MetricError."""

    def __init__(self, client: Reader, settings: Settings) -> None:
        self._client, self._settings = client, settings

    async def of_pods(self, resource: str, namespace: str, selector: str, container: str = "") -> PodMetrics:
        """Thousandths of what each pod uses, or one of its containers."""
        try:
            items = await self._client.list(POD_METRICS, namespace, labels=selector)
        except StatusError as error:
            why = f"unable to fetch metrics from resource metrics API: {_text(error, 'pods.metrics.k8s.io')}"
            raise MetricError(why) from error
        if not items:
            raise MetricError("no metrics returned from resource metrics API")
        found: PodMetrics = {}
        for item in items:
            value = _container_use(item, resource, container) if container else _pod_use(item, resource)
            if value is not None:
                window_s = duration_s(item.get("window", ""))
                found[name_of(item)] = PodMetric(value, parse_time(item["timestamp"]), window_s)
        return found

    async def custom_of_pods(self, metric: str, namespace: str, selector: str, metric_selector: str) -> PodMetrics:
        items = await self._custom(f"namespaces/{namespace}/pods/*/{metric}", selector, metric_selector)
        if not items:
            raise MetricError("no metrics returned from custom metrics API")
        return {
            item["describedObject"]["name"]: PodMetric(
                parse_quantity(item["value"]).milli(),
                parse_time(item["timestamp"]),
                float(item.get("windowSeconds", _DEFAULT_WINDOW_S)),
            )
            for item in items
        }

    async def of_object(self, metric: str, namespace: str, reference: Object, metric_selector: str) -> int:
        api_version, kind, name = reference.get("apiVersion", ""), reference["kind"], reference["name"]
        if kind == "Namespace" and api_version in ("", "v1"):
            path = f"namespaces/{namespace}/metrics/{metric}"
        else:
            known = self._settings.resource_of_kind(api_version or "v1", kind)
            if known is None:
                why = f'unable to map kind {kind} to resource: no matches for kind "{kind}" in version "{api_version}"'
                raise MetricError(f"unable to fetch metrics from custom metrics API: {why}")
            path = f"namespaces/{namespace}/{known[0].group_resource}/{name}/{metric}"
        items = await self._custom(path, "", metric_selector)
        if len(items) != 1:
            why = f"the custom metrics API server returned {len(items)} results when we asked for exactly one"
            raise MetricError(f"unable to fetch metrics from custom metrics API: {why}")
        return parse_quantity(items[0]["value"]).milli()

    async def external(self, metric: str, namespace: str, metric_selector: str) -> list[int]:
        path = f"/apis/{_EXTERNAL}/v1beta1/namespaces/{namespace}/{metric}"
        try:
            answer = await self._settings.get_path(path, {"labelSelector": metric_selector})
        except StatusError as error:
            why = f"unable to fetch metrics from external metrics API: {_text(error, f'{metric}.{_EXTERNAL}')}"
            raise MetricError(why) from error
        if not answer.get("items"):
            raise MetricError("no metrics returned from external metrics API")
        return [parse_quantity(item["value"]).milli() for item in answer["items"]]

    async def _custom(self, path: str, selector: str, metric_selector: str) -> list[Object]:
        try:
            group = await self._settings.get_path(f"/apis/{_CUSTOM}", {})
        except StatusError as error:
            why = f"no custom metrics API ({_CUSTOM}) registered" if error.code == 404 else str(error)
            raise MetricError(f"unable to fetch metrics from custom metrics API: {why}") from error
        version = dig(group, "preferredVersion", "version", default="v1beta2")
        query = {"labelSelector": selector, "metricLabelSelector": metric_selector}
        try:
            answer = await self._settings.get_path(f"/apis/{_CUSTOM}/{version}/{path}", query)
        except StatusError as error:
            raise MetricError(f"unable to fetch metrics from custom metrics API: {error}") from error
        return list(answer.get("items") or ())


def _pod_use(item: Object, resource: str) -> int | None:
    """The sum; None where a container does not tell."""
    containers = item.get("containers") or ()
    used = [dig(container, "usage", resource) for container in containers]
    if not used or None in used:
        return None
    return sum(parse_quantity(amount).milli() for amount in used)


def _container_use(item: Object, resource: str, name: str) -> int | None:
    for container in item.get("containers") or ():
        if container.get("name") == name and (amount := dig(container, "usage", resource)) is not None:
            return parse_quantity(amount).milli()
    return None


def _text(error: StatusError, what: str) -> str:
    """As client-go tells of an API that is not there."""
    unknown = "the server could not find the requested resource"
    return f"{unknown} (get {what})" if str(error) == unknown else str(error)


def duration_s(text: str) -> float:
    """A Go duration: "15s", "1m30s"."""
    return sum(float(n) * _UNITS_S[unit] for n, unit in re.findall(r"([0-9.]+)(ns|us|µs|ms|h|m|s)", text))
