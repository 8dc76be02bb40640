"""The Service kube-system/kube-dns, by which programs find cluster DNS; it carries the address, kone answers at it."""

from __future__ import annotations

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import SERVICES
from kone.apimachinery.objects import Object, labels_of
from kone.client.client import Client
from kone.net.service_map import PROXY_NAME

NAMESPACE, NAME = "kube-system", "kube-dns"
KONE = "kone"


def dns_service(address: str) -> Object:
    """The Service as kubeadm makes it, but for its endpoints: the node listens on the address itself.

    The label says to every proxier (this one's rule, and kube-proxy's) that somebody else serves it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": NAME,
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
                PROXY_NAME: KONE,
            },
        },
        "spec": {
            "clusterIP": address,
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
            ],
        },
    }


async def ensure_dns_service(client: Client, address: str) -> None:
    """Create the Service unless it is there, whoever made it. Raises StatusError, e.g. where the address is taken."""
    try:
        await client.get(SERVICES, NAME, NAMESPACE)
    except StatusError as error:
        if error.reason != "NotFound":
            raise
        await client.create(SERVICES, dns_service(address), namespace=NAMESPACE)


async def withdraw_dns_service(client: Client) -> None:
    """Delete the Service, if it is the one that an earlier run of the node made. Raises StatusError."""
    try:
        service = await client.get(SERVICES, NAME, NAMESPACE)
        if labels_of(service).get(PROXY_NAME) == KONE:
            await client.delete(SERVICES, NAME, namespace=NAMESPACE)
    except StatusError as error:
        if error.reason != "NotFound":
            raise
