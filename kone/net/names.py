"""What kone's things in the kernel are called: each is known as kone's, kept apart by instance, and found to remove it.

The default instance has the bridge `kone0` and chains `KONE-SERVICES`, …; the instance "two" has `kone-two` and
`KONE-two-SERVICES`. A chain's own part begins with a capital, an instance's name never holds one: no prefix is
another's.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

CHAIN_MAX = 28  # XT_EXTENSION_MAXNAMELEN - 1
LINK_MAX = 15  # IFNAMSIZ - 1


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one instance; "" is the default one."""

    instance: str = ""

    @property
    def bridge(self) -> str:
        return f"kone-{self.instance}"[:LINK_MAX] if self.instance else "kone0"

    @property
    def dummy(self) -> str:
        """The link that holds the Services' addresses where IPVS serves them."""
        return f"kipv-{self.instance}"[:LINK_MAX] if self.instance else "kipvs0"

    @property
    def userspace_link(self) -> str:
        """The link whose routes make Services' addresses the host's own where relays serve them."""
        return f"kusr-{self.instance}"[:LINK_MAX] if self.instance else "kusr0"

    @property
    def chain_prefix(self) -> str:
        return f"KONE-{self.instance}-" if self.instance else "KONE-"

    def chain(self, role: str) -> str:
        """The full name of the chain with this role, e.g. "SERVICES"; the role begins with a capital."""
        return self.chain_prefix + role

    def owns_chain(self, chain: str) -> bool:
        prefix = self.chain_prefix
        return chain.startswith(prefix) and chain[len(prefix) : len(prefix) + 1].isupper()

    def hashed_chain(self, role: str, identity: str) -> str:
        """A chain of many: the role and eight characters that stand for `identity`, 28 characters at the most."""
        return self.chain(f"{role}-{digest(identity, 8).upper()}")

    @property
    def policy_table(self) -> str:
        """The nftables table of NetworkPolicies, with its family."""
        return f"inet kone-{self.instance}-policy" if self.instance else "inet kone-policy"

    def service_table(self, family: int) -> str:
        """The nftables table of Services of that IP version, with its family."""
        name = f"kone-{self.instance}-services" if self.instance else "kone-services"
        return f"{'ip6' if family == 6 else 'ip'} {name}"

    @property
    def veth_prefix(self) -> str:
        """How the host's ends of all pods' links begin."""
        return f"kv{digest(self.instance, 3)}"

    def veth(self, pod_uid: str) -> str:
        """The host's end of a pod's link."""
        return self.veth_prefix + digest(pod_uid, 10)


def chain_prefix_of(chain: str) -> str:
    """The prefix that the chain's instance gives to all of its chains; "" for a chain that is not kone's."""
    match = re.match(r"KONE-(?:[a-z0-9-]+-)?(?=[A-Z])", chain)
    return match[0] if match else ""


def digest(text: str, length: int) -> str:
    """`length` hexadecimal characters that stand for `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]
