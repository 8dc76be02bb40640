"""Measurements of what design.md budgets: each figure beside its budget and, where one can be had, a baseline."""
