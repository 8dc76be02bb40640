"""kone: Kubernetes v1.37 on one machine, in one asyncio Python process."""

__version__ = "0.1.0"
KUBERNETES_VERSION = "v1.37.2"
