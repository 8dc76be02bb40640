"""Tests of the API server's room."""
