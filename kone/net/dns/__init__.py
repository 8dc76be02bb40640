"""Cluster DNS: the cluster's own names, and the way to all others."""
