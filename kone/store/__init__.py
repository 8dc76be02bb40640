"""Remembering: every object under one totally ordered revision, durable before it is answered."""
