"""Where `kubernetes.default` leads: the API server keeps the endpoints of its own Service, as upstream's does.

Both forms are kept: an Endpoints object that asks not to be mirrored, and the EndpointSlice that proxies read.
"""

from __future__ import annotations

from ipaddress import ip_address

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import ENDPOINTS, ENDPOINTSLICES, GVR
from kone.apimachinery.objects import Object
from kone.client.client import Client

NAMESPACE, NAME = "default", "kubernetes"


def endpoints(address: str, port: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [
            {"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]},
        ],
    }


def endpoint_slice(address: str, port: int) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": "IPv6" if ":" in address else "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }


async def reconcile(client: Client, address: str, port: int) -> None:
    """Make both say that the API is at address:port; writes nothing where they do.

    A host without an address of its own has none to give: loopback is no endpoint (API validation).
    """
    if ip_address(address).is_loopback:
        return
    for resource, wanted in ((ENDPOINTS, endpoints(address, port)), (ENDPOINTSLICES, endpoint_slice(address, port))):
        await _reconcile_one(client, resource, wanted)


async def _reconcile_one(client: Client, resource: GVR, wanted: Object) -> None:
    try:
        found = await client.get(resource, NAME, NAMESPACE)
    except StatusError as error:
        if error.code != 404:
            raise
        await client.create(resource, wanted, namespace=NAMESPACE)
        return
    said = {key: value for key, value in wanted.items() if key != "metadata"}
    if any(found.get(key) != value for key, value in said.items()):
        await client.update(resource, {**found, **said})
