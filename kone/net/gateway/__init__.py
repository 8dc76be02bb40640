"""The Gateway API, served by ingress's data plane."""
