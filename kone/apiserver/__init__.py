"""Bytes on the wire: HTTP requests become verbs, verbs become responses."""
