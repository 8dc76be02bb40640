"""What names, keys and addresses may look like. Each is_… returns upstream's messages; an empty list means valid.

Rules and texts: k8s.io/apimachinery util/validation and api/validate/content. Lengths are bytes of UTF-8, as in Go.
"""

from __future__ import annotations

import ipaddress
import re

_LABEL_1123 = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN_1123 = rf"{_LABEL_1123}(\.{_LABEL_1123})*"
_LABEL_1123_UNDERSCORE = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_SUBDOMAIN_1123_UNDERSCORE = rf"{_LABEL_1123_UNDERSCORE}(\.{_LABEL_1123_UNDERSCORE})*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_WILDCARD_1123 = rf"\*\.{_SUBDOMAIN_1123}"
_LABEL_KEY = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = f"({_LABEL_KEY})?"
_ENV_VAR = "[-._a-zA-Z][-._a-zA-Z0-9]*"
_CONFIG_KEY = "[-._a-zA-Z0-9]+"
_PERCENT = "[0-9]+%"
_HTTP_HEADER = "[-A-Za-z0-9]+"
_C_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"
_HTTP_PATH = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+"

_label_1123 = re.compile(rf"{_LABEL_1123}\Z")
_subdomain_1123 = re.compile(rf"{_SUBDOMAIN_1123}\Z")
_subdomain_1123_underscore = re.compile(rf"{_SUBDOMAIN_1123_UNDERSCORE}\Z")
_label_1035 = re.compile(rf"{_LABEL_1035}\Z")
_wildcard_1123 = re.compile(rf"{_WILDCARD_1123}\Z")
_label_key = re.compile(rf"{_LABEL_KEY}\Z")
_env_var = re.compile(rf"{_ENV_VAR}\Z")
_config_key = re.compile(rf"{_CONFIG_KEY}\Z")
_percent = re.compile(rf"{_PERCENT}\Z")
_http_header = re.compile(rf"{_HTTP_HEADER}\Z")
_c_identifier = re.compile(rf"{_C_IDENTIFIER}\Z")
_http_path = re.compile(rf"{_HTTP_PATH}\Z")

_LABEL_1123_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "and must start and end with an alphanumeric character"
)
_SUBDOMAIN_1123_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character"
)
_SUBDOMAIN_UNDERSCORE_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', "
    "and must start and end with an alphanumeric character"
)
_LABEL_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', "
    "start with an alphabetic character, and end with an alphanumeric character"
)
_WILDCARD_TEXT = (
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of "
    "lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character"
)
_LABEL_KEY_TEXT = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
)
_LABEL_VALUE_TEXT = f"a valid label must be an empty string or {_LABEL_KEY_TEXT.removeprefix('must ')}"
_ENV_VAR_TEXT = (
    "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', "
    "and must not start with a digit"
)
_CONFIG_KEY_TEXT = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
_PERCENT_TEXT = "a valid percent string must be a numeric string followed by an ending '%'"
_HTTP_HEADER_TEXT = "a valid HTTP header must consist of alphanumeric characters or '-'"
_C_IDENTIFIER_TEXT = (
    "a valid C identifier must start with alphabetic character or '_', "
    "followed by a string of alphanumeric characters or '_'"
)

IP_TEXT = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
CIDR_TEXT = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"

Names = list[str]


def regex_error(text: str, regex: str, *examples: str) -> str:
    """`text` with the examples and the regular expression behind it, as upstream words it."""
    shown = " or ".join(f"'{example}', " for example in examples)
    return (
        f"{text} (e.g. {shown}regex used for validation is '{regex}')"
        if shown
        else (f"{text} (regex used for validation is '{regex}')")
    )


def max_length_error(length: int) -> str:
    return f"must be no more than {length} characters"


def max_bytes_error(length: int) -> str:
    """The newer wording, which label keys and values use."""
    return f"must be no more than {length} bytes"


def in_range_error(low: int, high: int) -> str:
    return f"must be between {low} and {high}, inclusive"


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def is_dns1123_label(value: str) -> Names:
    errors = [max_length_error(63)] if _size(value) > 63 else []
    if not _label_1123.match(value):
        if _subdomain_1123.match(value):
            errors.append("must not contain dots")
        else:
            errors.append(regex_error(_LABEL_1123_TEXT, _LABEL_1123, "my-name", "123-abc"))
    return errors


def is_dns1123_subdomain(value: str) -> Names:
    errors = [max_length_error(253)] if _size(value) > 253 else []
    if not _subdomain_1123.match(value):
        errors.append(regex_error(_SUBDOMAIN_1123_TEXT, _SUBDOMAIN_1123, "example.com"))
    return errors


def is_dns1123_subdomain_with_underscore(value: str) -> Names:
    errors = [max_length_error(253)] if _size(value) > 253 else []
    if not _subdomain_1123_underscore.match(value):
        errors.append(regex_error(_SUBDOMAIN_UNDERSCORE_TEXT, _SUBDOMAIN_1123_UNDERSCORE, "example.com"))
    return errors


def is_wildcard_dns1123_subdomain(value: str) -> Names:
    errors = [max_length_error(253)] if _size(value) > 253 else []
    if not _wildcard_1123.match(value):
        errors.append(regex_error(_WILDCARD_TEXT, _WILDCARD_1123, "*.example.com"))
    return errors


def is_dns1035_label(value: str) -> Names:
    errors = [max_length_error(63)] if _size(value) > 63 else []
    if not _label_1035.match(value):
        errors.append(regex_error(_LABEL_1035_TEXT, _LABEL_1035, "my-name", "abc-123"))
    return errors


def is_qualified_name(value: str) -> Names:
    """A label or annotation key, a resource name, a condition type: "name" or "example.com/name"."""
    prefix, slash, name = value.partition("/")
    errors: Names = []
    key_error = regex_error(_LABEL_KEY_TEXT, _LABEL_KEY, "MyName", "my.name", "123-abc")
    if not slash:
        name = prefix
    elif "/" in name:
        example = " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        return [f"a valid label key {key_error}{example}"]
    elif not prefix:
        errors.append("prefix part must be non-empty")
    else:
        if _size(prefix) > 253:
            errors.append(f"prefix part {max_bytes_error(253)}")
        if not _subdomain_1123.match(prefix):
            errors.append(f"prefix part {regex_error(_SUBDOMAIN_1123_TEXT, _SUBDOMAIN_1123, 'example.com')}")
    if not name:
        errors.append("name part must be non-empty")
    elif _size(name) > 63:
        errors.append(f"name part {max_bytes_error(63)}")
    if not _label_key.match(name):
        errors.append(f"name part {key_error}")
    return errors


def is_valid_label_value(value: str) -> Names:
    errors = [max_bytes_error(63)] if _size(value) > 63 else []
    if value and not _label_key.match(value):
        errors.append(regex_error(_LABEL_VALUE_TEXT, _LABEL_VALUE, "MyValue", "my_value", "12345"))
    return errors


def is_fully_qualified_name(value: str) -> Names:
    """At least three DNS labels. An empty value is the caller's "required" error."""
    errors = is_dns1123_subdomain(value)
    if errors:
        return [",".join(errors)]
    if value.count(".") < 2:
        return ["should be a domain with at least three segments separated by dots"]
    return []


def is_fully_qualified_domain_name(value: str) -> Names:
    """At least two DNS labels; a final dot is allowed."""
    name = value.removesuffix(".")
    errors = is_dns1123_subdomain(name)
    if errors:
        return [",".join(errors)]
    if "." not in name:
        return ["should be a domain with at least two segments separated by dots"]
    for label in name.split("."):
        errors = is_dns1123_label(label)
        if errors:
            return [",".join(errors)]
    return []


def is_domain_prefixed_path(value: str) -> Names:
    """A finalizer or signer name such as "acme.io/foo"."""
    host, slash, path = value.partition("/")
    if not slash or not host or not path:
        return ['must be a domain-prefixed path (such as "acme.io/foo")']
    errors = is_dns1123_subdomain(host)
    if not _http_path.match(path):
        errors.append(regex_error("Invalid path", _HTTP_PATH))
    return errors


def is_c_identifier(value: str) -> Names:
    if _c_identifier.match(value):
        return []
    return [regex_error(_C_IDENTIFIER_TEXT, _C_IDENTIFIER, "my_name", "MY_NAME", "MyName")]


def is_valid_port_num(port: int) -> Names:
    return [] if 1 <= port <= 65535 else [in_range_error(1, 65535)]


def is_in_range(value: int, low: int, high: int) -> Names:
    return [] if low <= value <= high else [in_range_error(low, high)]


def is_valid_group_id(gid: int) -> Names:
    return is_in_range(gid, 0, 2**31 - 1)


def is_valid_user_id(uid: int) -> Names:
    return is_in_range(uid, 0, 2**31 - 1)


def is_valid_port_name(port: str) -> Names:
    errors = [max_length_error(15)] if _size(port) > 15 else []
    if not re.match(r"[-a-z0-9]+\Z", port):
        errors.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", port):
        errors.append("must contain at least one letter (a-z)")
    if "--" in port:
        errors.append("must not contain consecutive hyphens")
    if port.startswith("-") or port.endswith("-"):
        errors.append("must not begin or end with a hyphen")
    return errors


def is_valid_percent(value: str) -> Names:
    return [] if _percent.match(value) else [regex_error(_PERCENT_TEXT, _PERCENT, "1%", "93%")]


def is_http_header_name(value: str) -> Names:
    return [] if _http_header.match(value) else [regex_error(_HTTP_HEADER_TEXT, _HTTP_HEADER, "X-Header-Name")]


def is_env_var_name(value: str) -> Names:
    """The strict rule, for variables made out of ConfigMap keys and the like."""
    errors: Names = []
    if not _env_var.match(value):
        errors.append(regex_error(_ENV_VAR_TEXT, _ENV_VAR, "my.env-name", "MY_ENV.NAME", "MyEnvName1"))
    return errors + _parent_directory(value)


def is_relaxed_env_var_name(value: str) -> Names:
    """What v1.34 and newer allow for a container's env: any printable ASCII but "="."""
    if not value:
        return ["environment variable name must be non-empty"]
    if any(not " " <= char <= "~" or char == "=" for char in value):
        return ["a valid environment variable name must consist only of printable ASCII characters other than '='"]
    return []


def is_config_map_key(value: str) -> Names:
    errors = [max_length_error(253)] if _size(value) > 253 else []
    if not _config_key.match(value):
        errors.append(regex_error(_CONFIG_KEY_TEXT, _CONFIG_KEY, "key.name", "KEY_NAME", "key-name"))
    return errors + _parent_directory(value)


def _parent_directory(value: str) -> Names:
    if value in (".", ".."):
        return [f"must not be '{value}'"]
    return ["must not start with '..'"] if value.startswith("..") else []


def is_path_segment_name(value: str) -> Names:
    """A name that may stand in a URL path: what RBAC objects are held to."""
    if value in (".", ".."):
        return [f"may not be '{value}'"]
    return is_path_segment_prefix(value)


def is_path_segment_prefix(value: str) -> Names:
    return [f"may not contain '{char}'" for char in "/%" if char in value]


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_ip(value: str) -> Address | None:
    """An address, or None. Zones are not allowed; leading zeros in IPv4 parts are."""
    try:
        return ipaddress.ip_address(value) if "%" not in value else None
    except ValueError:
        return _parse_ip_sloppy(value)


def _parse_ip_sloppy(value: str) -> Address | None:
    """Leading zeros in IPv4 parts, which Kubernetes took before v1.36 (netutils.ParseIPSloppy)."""
    head, _, tail = value.rpartition(":")
    parts = tail.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    plain = ".".join(str(int(part)) for part in parts)
    try:
        return ipaddress.ip_address(f"{head}:{plain}" if head else plain)
    except ValueError:
        return None


def is_valid_ip_legacy(value: str) -> Names:
    """An IP in a field older than strict validation: any notation, but no leading zeros and no mapped IPv4."""
    address = parse_ip(value)
    if address is None:
        return [IP_TEXT]
    errors: Names = []
    try:
        ipaddress.ip_address(value)
    except ValueError:
        errors.append("must not have leading 0s")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        errors.append("must not be an IPv4-mapped IPv6 address")
    return errors


def is_valid_ip(value: str) -> Names:
    """An IP in canonical notation."""
    errors = is_valid_ip_legacy(value)
    if errors:
        return errors
    canonical = str(ipaddress.ip_address(value))
    return [] if value == canonical else [f'must be in canonical form ("{canonical}")']


def is_cidr_legacy(value: str) -> Names:
    """A CIDR in a field older than strict validation: any notation of a whole network."""
    address_text, slash, bits_text = value.partition("/")
    address = parse_ip(address_text)
    size = 32 if isinstance(address, ipaddress.IPv4Address) else 128
    if address is None or not slash or not re.match(r"[0-9]+\Z", bits_text) or int(bits_text) > size:
        return [CIDR_TEXT]
    if (bits_text[0] == "0" and len(bits_text) > 1) or "must not have leading 0s" in is_valid_ip_legacy(address_text):
        return ["must not have leading 0s in IP or prefix length"]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return ["must not have an IPv4-mapped IPv6 address"]
    network = ipaddress.ip_network((address, int(bits_text)), strict=False)
    if network.network_address != address:
        return ["must not have bits set beyond the prefix length"]
    return []


def is_cidr(value: str) -> Names:
    """A CIDR in canonical notation."""
    errors = is_cidr_legacy(value)
    if errors:
        return errors
    canonical = str(ipaddress.ip_network(value))
    return [] if value == canonical else [f'must be in canonical form ("{canonical}")']


def is_interface_address(value: str) -> Names:
    """An address with the length of its network, in canonical notation: 10.9.8.7/24."""
    address_text, slash, bits_text = value.partition("/")
    address = parse_ip(address_text)
    size = 32 if isinstance(address, ipaddress.IPv4Address) else 128
    if address is None or not slash or not re.match(r"[0-9]+\Z", bits_text) or int(bits_text) > size:
        return ["must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"]
    canonical = f"{address}/{int(bits_text)}"
    return [] if value == canonical else [f'must be in canonical form ("{canonical}")']


ALPHANUMERICS = "bcdfghjklmnpqrstvwxz2456789"
"""The letters of generated suffixes: no vowels, so no words; no digits that look like letters (util/rand)."""
MAX_GENERATED_PREFIX = 58


def generate_name(prefix: str, suffix: str) -> str:
    """metadata.generateName plus a random suffix of five, cut so that the whole is at most 63 long."""
    return prefix[:MAX_GENERATED_PREFIX] + suffix
