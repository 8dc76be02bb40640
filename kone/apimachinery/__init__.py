"""Kubernetes' object model as pure functions on JSON objects: no I/O, no asyncio."""
