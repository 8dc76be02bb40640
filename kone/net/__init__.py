"""Making it reachable: pod network, service proxy, cluster DNS."""
