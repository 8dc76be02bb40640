"""Rules on the addresses of endpoints, which Endpoints and EndpointSlices share."""

from __future__ import annotations

from kone.apimachinery.errors import invalid_value
from kone.apimachinery.names import parse_ip
from kone.registry.rules import Errors

_RANGES = (
    ("is_loopback", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
    ("is_link_local", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
)


def endpoint_ip(errors: Errors, path: str, address: str) -> None:
    """An address that a Service may send traffic to: none of the node's own or of the link (ValidateEndpointIP)."""
    parsed = parse_ip(address)
    if parsed is None:
        errors.append(invalid_value(path, address, "must be a valid IP address"))
        return
    ip = getattr(parsed, "ipv4_mapped", None) or parsed
    if ip.is_unspecified:
        errors.append(invalid_value(path, address, f"may not be unspecified ({address})"))
    for attribute, text in _RANGES:
        if getattr(ip, attribute):
            errors.append(invalid_value(path, address, text))
    # Upstream means the link-local multicast addresses: 224.0.0.0/24 and ff02::/16.
    packed = ip.packed
    if packed[:3] == b"\xe0\x00\x00" if ip.version == 4 else packed[0] == 0xFF and packed[1] & 0x0F == 2:
        text = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        errors.append(invalid_value(path, address, text))
