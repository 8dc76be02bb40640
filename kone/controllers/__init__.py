"""Wanting: one file a controller, each a pure plan and a thin act."""
