"""Ingress: HTTP from outside to Services, by Caddy."""
