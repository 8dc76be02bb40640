"""A virtual machine with Debian's own kernel, for what the host's kernel may not have: IPVS, ipset, SCTP."""
