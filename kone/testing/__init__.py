"""A kone cluster inside your own test process: API, controllers and scheduler on a memory store, no root, no Docker.

    async with kone.testing.Cluster() as cluster:
        await cluster.client.create(CONFIGMAPS, {...}, namespace="default")
        subprocess.run(["kubectl", "--kubeconfig", cluster.kubeconfig, "get", "configmaps"])

Several run at once, each with its own port, certificates and data. The pytest fixture `kone_cluster` gives one a test.
"""

from kone.testing.cluster import Cluster

__all__ = ["Cluster"]
