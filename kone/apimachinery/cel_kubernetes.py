"""Kubernetes' own CEL functions: quantities, URLs, IPs, CIDRs, named formats, regular expressions, list helpers,
semantic versions, the authorizer and JSON patches. Signatures and error texts: k8s.io/apiserver, pkg/cel/library."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

from kone.apimachinery import names
from kone.apimachinery.cel_functions import Functions
from kone.apimachinery.cel_standard import add, contains, size_of, traversal, walk_cost
from kone.apimachinery.cel_values import (
    NONE,
    CelError,
    Duration,
    Opaque,
    Optional,
    UInt,
    compare,
    equal,
    no_overload,
    parse_timestamp,
)
from kone.apimachinery.errors import go_quote
from kone.apimachinery.go_netip import parse_address
from kone.apimachinery.go_regexp import Regexp, compile_go
from kone.apimachinery.quantity import Quantity, parse_quantity

KUBERNETES = Functions()
_declare = KUBERNETES.declare


def _parse_cost(args: list[Any], result: Any) -> int:
    return traversal(size_of(args[0]))


# -- lists ------------------------------------------------------------------------------------------------------------


def _is_sorted(found: list[Any]) -> bool:
    return all(compare(a, b) <= 0 for a, b in itertools.pairwise(found))


def _best(word: str, sign: int) -> Callable[[list[Any]], Any]:
    def best(found: list[Any]) -> Any:
        if not found:
            raise CelError(f"{word} called on empty list")
        result = found[0]
        for each in found[1:]:
            if compare(each, result) == sign:
                result = each
        return result

    return best


def _sum(zero: Any) -> Callable[[list[Any]], Any]:
    def total(found: list[Any]) -> Any:
        result = zero
        for each in found:
            result = add(result, each)
        return result

    return total


def _index_of(found: list[Any], item: Any) -> int:
    return next((i for i, each in enumerate(found) if equal(each, item)), -1)


def _last_index_of(found: list[Any], item: Any) -> int:
    return next((i for i in reversed(range(len(found))) if equal(found[i], item)), -1)


for _t in ("int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes"):
    _declare("isSorted", f"list({_t}).() -> bool", _is_sorted, walk_cost)
    _declare("min", f"list({_t}).() -> {_t}", _best("min", -1), walk_cost)
    _declare("max", f"list({_t}).() -> {_t}", _best("max", 1), walk_cost)
for _t, _zero in (("int", 0), ("uint", UInt(0)), ("double", 0.0), ("duration", Duration(0))):
    _declare("sum", f"list({_t}).() -> {_t}", _sum(_zero), walk_cost)
_declare("indexOf", "list(A).(A) -> int", _index_of, walk_cost)
_declare("lastIndexOf", "list(A).(A) -> int", _last_index_of, walk_cost)
_declare(
    "includes",
    "dyn.(dyn) -> bool",
    lambda found, item: contains(item, found) if isinstance(found, list) else equal(found, item),
    walk_cost,
)


# -- regular expressions ----------------------------------------------------------------------------------------------


def _compiled(pattern: str) -> Regexp:
    try:
        return compile_go(pattern)
    except ValueError as error:
        raise CelError(f"Illegal regex: {error}") from None


def _find(text: str, pattern: str) -> str:
    found = _compiled(pattern).search(text)
    return found[0] if found else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in _compiled(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _find_cost(args: list[Any], result: Any) -> int:
    return math.ceil((1 + size_of(args[0])) / 10) * math.ceil(size_of(args[1]) * 0.25)


_declare("find", "string.(string) -> string", _find, _find_cost)
_declare("findAll", "string.(string) -> list(string)", _find_all, _find_cost)
_declare("findAll", "string.(string, int) -> list(string)", _find_all, _find_cost)


# -- quantities -------------------------------------------------------------------------------------------------------

_NANO = 10**9


@dataclass(frozen=True)
class QuantityValue(Opaque):
    cel_type = "kubernetes.Quantity"
    quantity: Quantity

    @property
    def nanos(self) -> int:
        return self.quantity.nanos


def _quantity(text: str) -> QuantityValue:
    try:
        return QuantityValue(parse_quantity(text))
    except ValueError as error:
        raise CelError(str(error)) from None


def _is_quantity(text: str) -> bool:
    try:
        parse_quantity(text)
    except ValueError:
        return False
    return True


def _as_integer(q: QuantityValue) -> int:
    if not _is_integer(q):
        raise CelError("cannot convert value to integer")
    return q.nanos // _NANO


def _is_integer(q: QuantityValue) -> bool:
    return q.nanos % _NANO == 0 and -(1 << 63) <= q.nanos // _NANO < 1 << 63


def _operand(value: Any) -> Quantity:
    return value.quantity if isinstance(value, QuantityValue) else Quantity.of(value)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


_Q = "kubernetes.Quantity"
_declare("quantity", f"(string) -> {_Q}", _quantity, _parse_cost)
_declare("isQuantity", "(string) -> bool", _is_quantity, _parse_cost)
_declare("sign", f"({_Q}) -> int", lambda a: _sign(a.nanos))
_declare("isGreaterThan", f"{_Q}.({_Q}) -> bool", lambda a, b: a.nanos > b.nanos)
_declare("isLessThan", f"{_Q}.({_Q}) -> bool", lambda a, b: a.nanos < b.nanos)
_declare("compareTo", f"{_Q}.({_Q}) -> int", lambda a, b: _sign(a.nanos - b.nanos))
_declare("asApproximateFloat", f"{_Q}.() -> double", lambda a: a.nanos / _NANO)
_declare("asInteger", f"{_Q}.() -> int", _as_integer)
_declare("isInteger", f"{_Q}.() -> bool", _is_integer)
for _t in (_Q, "int"):
    _declare("add", f"{_Q}.({_t}) -> {_Q}", lambda a, b: QuantityValue(a.quantity + _operand(b)))
    _declare("sub", f"{_Q}.({_t}) -> {_Q}", lambda a, b: QuantityValue(a.quantity - _operand(b)))


# -- URLs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Url(Opaque):
    cel_type = "kubernetes.URL"
    text: str
    scheme: str
    host: str
    path: str
    query: str


def _parse_url(text: str) -> Url:
    """As Go's url.ParseRequestURI reads it. Raises ValueError."""
    shown = f'parse "{text}"'
    if not text:
        raise ValueError(f"{shown}: empty url")
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
        raise ValueError(f"{shown}: net/url: invalid control character in URL")
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", text)
    if not text.startswith("/") and not scheme:
        if text.startswith(":"):
            raise ValueError(f"{shown}: missing protocol scheme")
        raise ValueError(f"{shown}: invalid URI for request")
    bad = re.search(r"%(?![0-9A-Fa-f]{2}).{0,2}", text.partition("?")[0])
    if bad:
        raise ValueError(f'{shown}: invalid URL escape "{bad[0]}"')
    try:
        parts = urlsplit(text, allow_fragments=False)
    except ValueError:
        raise ValueError(f"{shown}: missing ']' in host") from None
    host = parts.netloc.rpartition("@")[2]
    if re.search(r"[ <>\"]", host):
        char = re.search(r"[ <>\"]", host)
        raise ValueError(f'{shown}: invalid character "{char[0] if char else ""}" in host name')
    port = re.search(r":([^\]]*)$", host)
    if port and not re.fullmatch(r"\d*", port[1]):
        raise ValueError(f'{shown}: invalid port ":{port[1]}" after host')
    if scheme and not parts.netloc and not parts.path.startswith("/"):
        return Url(text, parts.scheme, "", "", parts.query)
    return Url(text, parts.scheme, host, parts.path, parts.query)


def _url(text: str) -> Url:
    try:
        return _parse_url(text)
    except ValueError as error:
        raise CelError(f"URL parse error during conversion from string: {error}") from None


def _is_url(text: str) -> bool:
    try:
        _parse_url(text)
    except ValueError:
        return False
    return True


def _hostname(url: Url) -> str:
    host = re.sub(r":\d*$", "", url.host)
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _port(url: Url) -> str:
    found = re.search(r":(\d*)$", url.host)
    return found[1] if found else ""


_U = "kubernetes.URL"
_declare("url", f"(string) -> {_U}", _url, _parse_cost)
_declare("isURL", "(string) -> bool", _is_url)
_declare("getScheme", f"{_U}.() -> string", lambda u: u.scheme)
_declare("getHost", f"{_U}.() -> string", lambda u: u.host)
_declare("getHostname", f"{_U}.() -> string", _hostname)
_declare("getPort", f"{_U}.() -> string", _port)
_declare("getEscapedPath", f"{_U}.() -> string", lambda u: quote(unquote(u.path), safe="/:@!$&'()*+,;=~-._"))
_declare("getQuery", f"{_U}.() -> map(string, list(string))", lambda u: parse_qs(u.query, keep_blank_values=True))


# -- addresses --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ip(Opaque):
    cel_type = "net.IP"
    address: IPv4Address | IPv6Address

    @property
    def size(self) -> int:
        return len(self.address.packed)


@dataclass(frozen=True)
class Cidr(Opaque):
    cel_type = "net.CIDR"
    address: IPv4Address | IPv6Address  # as written, not masked
    prefix: int

    @property
    def size(self) -> int:
        return math.ceil(self.prefix / 8)

    @property
    def network(self) -> IPv4Network | IPv6Network:
        return ip_interface(f"{self.address}/{self.prefix}").network


def _parse_ip(text: str) -> IPv4Address | IPv6Address:
    try:
        found = parse_address(text)
    except ValueError as error:
        raise ValueError(f'IP Address "{text}" parse error during conversion from string: {error}') from None
    if "%" in text:
        raise ValueError(f'IP address "{text}" with zone value is not allowed')
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        raise ValueError(f'IPv4-mapped IPv6 address "{text}" is not allowed')
    return found


def _ip(text: str) -> Ip:
    try:
        return Ip(_parse_ip(text))
    except ValueError as error:
        raise CelError(str(error)) from None


_NO_NETWORK = "network address parse error during conversion from string"


def _parse_cidr(text: str) -> Cidr:
    def refuse(why: str) -> ValueError:
        return ValueError(f'{_NO_NETWORK}: netip.ParsePrefix("{text}"): {why}')

    head, slash, bits = text.rpartition("/")
    if not slash:
        raise refuse("no '/'")
    try:
        address = parse_address(head)
    except ValueError as error:
        raise refuse(str(error)) from None
    if isinstance(address, IPv6Address) and address.scope_id:
        raise refuse("IPv6 zones cannot be present in a prefix")
    if not re.fullmatch(r"0|[1-9]\d{0,2}", bits):
        raise refuse(f'bad bits after slash: "{bits}"')
    if int(bits) > address.max_prefixlen:
        raise refuse("prefix length out of range")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError(f'IPv4-mapped IPv6 address "{text}" is not allowed')
    return Cidr(address, int(bits))


def _cidr(text: str) -> Cidr:
    try:
        return _parse_cidr(text)
    except ValueError as error:
        raise CelError(f"{_NO_NETWORK}: {error}") from None  # upstream says so at both of its layers


def _parses(parse: Callable[[str], Any]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


def _is_canonical(text: str) -> bool:
    return str(_ip(text).address) == text


def _contains_ip(found: Cidr, other: Any) -> bool:
    try:
        address = other.address if isinstance(other, Ip) else _parse_ip(other)
    except ValueError:
        raise no_overload() from None
    return address.version == found.address.version and address in found.network


def _contains_cidr(found: Cidr, other: Any) -> bool:
    inner = other if isinstance(other, Cidr) else _cidr(other)
    return found.prefix <= inner.prefix and _contains_ip(found, Ip(inner.network.network_address))


def _contained_cost(args: list[Any], result: Any) -> int:
    """Two lists of bytes are compared as far as the prefix goes; a text is read before."""
    found: Cidr = args[0]
    read = traversal(len(args[1])) if isinstance(args[1], str) else 0
    return traversal(2 * found.size) + read


def _contained_network_cost(args: list[Any], result: Any) -> int:
    """The prefix is gone through once more, to mask it, and its length is compared."""
    return _contained_cost(args, result) + traversal(args[0].size) + 1


def _is_global_unicast(ip: Ip) -> bool:
    a = ip.address
    broadcast = a.version == 4 and int(a) == 0xFFFFFFFF
    return not (a.is_unspecified or a.is_loopback or a.is_multicast or a.is_link_local or broadcast)


def _is_link_local_multicast(ip: Ip) -> bool:
    packed = ip.address.packed
    return packed[:3] == b"\xe0\x00\x00" if len(packed) == 4 else packed[0] == 0xFF and packed[1] & 0x0F == 0x02


_declare("ip", "(string) -> net.IP", _ip, _parse_cost)
_declare("isIP", "(string) -> bool", _parses(_parse_ip), _parse_cost)
_declare("ip.isCanonical", "(string) -> bool", _is_canonical, lambda args, result: math.ceil(len(args[0]) * 0.2))
_declare("family", "net.IP.() -> int", lambda ip: ip.address.version)
_declare("isUnspecified", "net.IP.() -> bool", lambda ip: ip.address.is_unspecified)
_declare("isLoopback", "net.IP.() -> bool", lambda ip: ip.address.is_loopback)
_declare("isLinkLocalMulticast", "net.IP.() -> bool", _is_link_local_multicast)
_declare("isLinkLocalUnicast", "net.IP.() -> bool", lambda ip: ip.address.is_link_local)
_declare("isGlobalUnicast", "net.IP.() -> bool", _is_global_unicast)
_declare("string", "(net.IP) -> string", lambda ip: str(ip.address))
_declare("cidr", "(string) -> net.CIDR", _cidr, _parse_cost)
_declare("isCIDR", "(string) -> bool", _parses(_parse_cidr), _parse_cost)
for _t in ("string", "net.IP"):
    _declare("containsIP", f"net.CIDR.({_t}) -> bool", _contains_ip, _contained_cost)
for _t in ("string", "net.CIDR"):
    _declare("containsCIDR", f"net.CIDR.({_t}) -> bool", _contains_cidr, _contained_network_cost)
_declare("ip", "net.CIDR.() -> net.IP", lambda found: Ip(found.address))
_declare("prefixLength", "net.CIDR.() -> int", lambda found: found.prefix)
_declare("masked", "net.CIDR.() -> net.CIDR", lambda found: Cidr(found.network.network_address, found.prefix))
_declare("string", "(net.CIDR) -> string", lambda found: f"{found.address}/{found.prefix}")
KUBERNETES.types |= {"net.IP", "net.CIDR"}


# -- named formats ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedFormat(Opaque):
    cel_type = "kubernetes.NamedFormat"
    name: str
    check: Callable[[str], Sequence[str]]


def _prefix(check: Callable[[str], Sequence[str]]) -> Callable[[str], Sequence[str]]:
    """A generateName may end in a dash."""
    return lambda text: check(text[:-1] + "a" if len(text) > 1 and text.endswith("-") else text)


def _says(text: str, holds: Callable[[str], bool]) -> Callable[[str], Sequence[str]]:
    return lambda value: () if holds(value) else (text,)


def _uri(text: str) -> Sequence[str]:
    try:
        _parse_url(text)
    except ValueError as error:
        return (str(error),)
    return ()


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return bool(text)


_UUID = re.compile(r"(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_FORMATS: dict[str, Callable[[str], Sequence[str]]] = {
    "dns1123Label": names.is_dns1123_label,
    "dns1123Subdomain": names.is_dns1123_subdomain,
    "dns1035Label": names.is_dns1035_label,
    "qualifiedName": names.is_qualified_name,
    "dns1123LabelPrefix": _prefix(names.is_dns1123_label),
    "dns1123SubdomainPrefix": _prefix(names.is_dns1123_subdomain),
    "dns1035LabelPrefix": _prefix(names.is_dns1035_label),
    "labelValue": names.is_valid_label_value,
    "uri": _uri,
    "uuid": _says("does not match the UUID format", lambda text: bool(_UUID.fullmatch(text))),
    "byte": _says("invalid base64", _is_base64),
    "date": _says("invalid date", lambda text: parse_timestamp(f"{text}T00:00:00Z") is not None),
    "datetime": _says("invalid datetime", lambda text: parse_timestamp(text) is not None),
}
_PATTERN_LENGTHS = {  # of the regular expressions that upstream takes the formats to cost
    "dns1123Subdomain": 60,
    "dns1123SubdomainPrefix": 60,
    "qualifiedName": 60,
    "labelValue": 40,
    "uri": 1103,
    "uuid": 70,
    "byte": 84,
    "date": 71,
    "datetime": 71,
}
_LABEL_PATTERN_LENGTH = 30
_NAMED = {name: NamedFormat(name, check) for name, check in _FORMATS.items()}


def _validate(found: NamedFormat, text: str) -> Optional:
    errors = list(found.check(text))
    return Optional(errors) if errors else NONE


def _validate_cost(args: list[Any], result: Any) -> int:
    length = _PATTERN_LENGTHS.get(args[0].name, _LABEL_PATTERN_LENGTH)
    return math.ceil((1 + size_of(args[1])) / 10) * math.ceil(length * 0.25)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


for _name, _format in _NAMED.items():
    _declare(f"format.{_name}", "() -> kubernetes.NamedFormat", _constant(_format))
_declare(
    "format.named",
    "(string) -> optional_type(kubernetes.NamedFormat)",
    lambda name: Optional(_NAMED[name]) if name in _NAMED else NONE,
)
_declare("validate", "kubernetes.NamedFormat.(string) -> optional_type(list(string))", _validate, _validate_cost)


# -- semantic versions ------------------------------------------------------------------------------------------------

_SEMVER_WORD = re.compile(r"[0-9A-Za-z-]+")


@dataclass(frozen=True)
class Semver(Opaque):
    cel_type = "kubernetes.Semver"
    numbers: tuple[int, int, int]
    before: tuple[str, ...]

    @property
    def rank(self) -> tuple[Any, ...]:
        """A version before a release is less than it; numbers are less than words."""
        parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in self.before)
        return (*self.numbers, 0 if self.before else 1, parts)


def parse_semver(text: str, normalize: bool = False) -> Semver:
    """Raises ValueError with the text of github.com/blang/semver."""
    if normalize:
        parts = [part.lstrip("0") or "0" if part.isdigit() else part for part in text.removeprefix("v").split(".", 2)]
        if len(parts) < 3 and re.search(r"[+-]", parts[-1]):
            raise ValueError("short version cannot contain PreRelease/Build meta data")
        text = ".".join(parts + ["0"] * (3 - len(parts)))
    if not text:
        raise ValueError("Version string empty")
    parts = text.split(".", 2)
    if len(parts) != 3:
        raise ValueError("No Major.Minor.Patch elements found")
    _semver_number("major", parts[0])
    _semver_number("minor", parts[1])
    patch, plus, build = parts[2].partition("+")
    patch, dash, before = patch.partition("-")
    _semver_number("patch", patch)
    words = before.split(".") if dash else []
    for word in words:
        if not word:
            raise ValueError("Prerelease is empty")
        if word.isascii() and word.isdigit():
            if len(word) > 1 and word.startswith("0"):
                raise ValueError(f"Numeric PreRelease version must not contain leading zeroes {go_quote(word)}")
        elif not _SEMVER_WORD.fullmatch(word):
            raise ValueError(f"Invalid character(s) found in prerelease {go_quote(word)}")
    for word in build.split(".") if plus else ():
        if not word:
            raise ValueError("Build meta data is empty")
        if not _SEMVER_WORD.fullmatch(word):
            raise ValueError(f"Invalid character(s) found in build meta data {go_quote(word)}")
    return Semver((int(parts[0]), int(parts[1]), int(patch)), tuple(words))


def _semver_number(word: str, text: str) -> None:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"Invalid character(s) found in {word} number {go_quote(text)}")
    if len(text) > 1 and text.startswith("0"):
        raise ValueError(f"{word.title()} number must not contain leading zeroes {go_quote(text)}")
    if not text:
        raise ValueError('strconv.ParseUint: parsing "": invalid syntax')


def _semver(text: str, normalize: bool = False) -> Semver:
    try:
        return parse_semver(text, normalize)
    except ValueError as error:
        raise CelError(str(error)) from None


def _is_semver(text: str, normalize: bool = False) -> bool:
    try:
        parse_semver(text, normalize)
    except ValueError:
        return False
    return True


_V = "kubernetes.Semver"
for _t in ("string", "string, bool"):
    _declare("semver", f"({_t}) -> {_V}", _semver, _parse_cost)
    _declare("isSemver", f"({_t}) -> bool", _is_semver, _parse_cost)
_declare("isGreaterThan", f"{_V}.({_V}) -> bool", lambda a, b: a.rank > b.rank)
_declare("isLessThan", f"{_V}.({_V}) -> bool", lambda a, b: a.rank < b.rank)
_declare("compareTo", f"{_V}.({_V}) -> int", lambda a, b: (a.rank > b.rank) - (a.rank < b.rank))
for _at, _name in enumerate(("major", "minor", "patch")):
    _declare(_name, f"{_V}.() -> int", lambda found, at=_at: found.numbers[at])


# -- who may do what --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What an expression asks the authorizer: of a path, or of a resource (the user's own or a service account's)."""

    verb: str = ""
    path: str = ""
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    service_account: tuple[str, str] | None = None  # (namespace, name)
    field_selector: str = ""
    label_selector: str = ""


class Decide(Protocol):
    def __call__(self, question: Question) -> tuple[bool, str]:
        """Whether it is allowed, and why."""


@dataclass(frozen=True)
class _Check(Opaque):
    """One step of authorizer.group(…).resource(…).check(…); each step has a type of its own."""

    decide: Decide
    question: Question
    cel_type: str = "kubernetes.authorization.Authorizer"

    def to(self, step: str, **parts: Any) -> _Check:
        question = replace(self.question, **parts)
        return replace(self, question=question, cel_type=f"kubernetes.authorization.{step}")


def authorizer(decide: Decide) -> Opaque:
    """The value of the variable `authorizer`."""
    return _Check(decide, Question())


def resource_check(decide: Decide, question: Question) -> Opaque:
    """The value of the variable `authorizer.requestResource`."""
    return _Check(decide, question, "kubernetes.authorization.ResourceCheck")


@dataclass(frozen=True)
class _Decision(Opaque):
    cel_type = "kubernetes.authorization.Decision"
    allowed: bool
    reason: str


def _check(found: _Check, verb: str) -> _Decision:
    return _Decision(*found.decide(replace(found.question, verb=verb)))


def _non_empty(word: str, text: str) -> str:
    if not text:
        raise CelError(f"{word} must not be empty")
    return text


def _service_account(found: _Check, namespace: str, name: str) -> _Check:
    if names.is_dns1123_subdomain(name):
        raise CelError("Invalid service account name")
    if names.is_dns1123_label(namespace):
        raise CelError("Invalid service account namespace")
    return found.to("Authorizer", service_account=(namespace, name))


def _authorization_cost(args: list[Any], result: Any) -> int:
    return 350_000  # a webhook may be asked; library/cost.go


def _selector_cost(args: list[Any], result: Any) -> int:
    """A list of requirements: a list and a struct each, and one takes two characters at the least."""
    length = size_of(args[1])
    return 10 + traversal(length) + 50 * math.ceil(length * 0.5)


_A = "kubernetes.authorization"
AUTHORIZER, RESOURCE_CHECK = f"{_A}.Authorizer", f"{_A}.ResourceCheck"
_declare(
    "path",
    f"{_A}.Authorizer.(string) -> {_A}.PathCheck",
    lambda a, path: a.to("PathCheck", path=_non_empty("path", path)),
)
_declare("group", f"{_A}.Authorizer.(string) -> {_A}.GroupCheck", lambda a, group: a.to("GroupCheck", group=group))
_declare("serviceAccount", f"{_A}.Authorizer.(string, string) -> {_A}.Authorizer", _service_account)
_declare(
    "resource",
    f"{_A}.GroupCheck.(string) -> {_A}.ResourceCheck",
    lambda a, resource: a.to("ResourceCheck", resource=_non_empty("resource", resource)),
)
for _word, _key, _cost in (
    ("subresource", "subresource", None),
    ("namespace", "namespace", None),
    ("name", "name", None),
    ("fieldSelector", "field_selector", _selector_cost),
    ("labelSelector", "label_selector", _selector_cost),
):
    _declare(
        _word,
        f"{_A}.ResourceCheck.(string) -> {_A}.ResourceCheck",
        lambda a, text, key=_key: a.to("ResourceCheck", **{key: text}),
        _cost,
    )
for _t in ("PathCheck", "ResourceCheck"):
    _declare("check", f"{_A}.{_t}.(string) -> {_A}.Decision", _check, _authorization_cost)
_declare("errored", f"{_A}.Decision.() -> bool", lambda decision: False)
_declare("error", f"{_A}.Decision.() -> string", lambda decision: "")
_declare("allowed", f"{_A}.Decision.() -> bool", lambda decision: decision.allowed)
_declare("reason", f"{_A}.Decision.() -> string", lambda decision: decision.reason)


# -- patches, for mutating policies only ------------------------------------------------------------------------------

JSON_PATCH = Functions()
JSON_PATCH.declare(
    "jsonpatch.escapeKey",
    "(string) -> string",
    lambda key: key.replace("~", "~0").replace("/", "~1"),
    _parse_cost,
)
