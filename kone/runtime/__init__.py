"""Making it so: the kubelet on Docker."""
