"""The core API group: one module a kind, or a part of the pod."""
