"""YAML as Kubernetes reads and writes it: the JSON data model, YAML 1.1's words for booleans, dates as text.

Reading is PyYAML's loader with the scalars of Go's yaml.v2; keys that are given twice are reported, the last one wins.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
import yaml

from kone.apimachinery import json_text


class YamlError(ValueError):
    """The text is not YAML; what upstream says after "yaml: "."""


class Loaded(bytes):
    """A text that has been read before (yaml_reader): `load` gives what was found, or raises YamlError as it was."""

    value: Any
    twice: list[str]
    error: str | None

    def __new__(cls, text: bytes, value: Any, twice: list[str], error: str | None) -> Loaded:
        made = super().__new__(cls, text)
        made.value, made.twice, made.error = value, twice, error
        return made


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # where libyaml is there, it reads
    twice: list[str]

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Raises ConstructorError for half of a surrogate pair, which Go's reader does not take even from a pair."""
        value = super().construct_scalar(node)
        if _SURROGATES.search(str(value)):
            problem = "found invalid Unicode character escape code"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


_SURROGATES = re.compile("[\ud800-\udfff]")


_BOOLEANS = re.compile(r"^(?:y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON|n|N|no|No|NO|false|False|FALSE|off|Off|OFF)$")
_TRUE = frozenset(("y", "yes", "true", "on"))
_INTEGERS = re.compile(r"^[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_FLOATS = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$")

_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEANS, list("yYnNtTfFoO"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGERS, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOATS, list("-+0123456789."))


def _construct_bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() in _TRUE


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    text = str(loader.construct_scalar(node)).replace("_", "")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return json_text.fitting(sign * int(digits[2:], base))
    if len(digits) > 1 and digits[0] == "0":
        return json_text.fitting(sign * int(digits, 8))
    return json_text.number("-" + digits if sign < 0 else digits)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return json_text.real(str(loader.construct_scalar(node)).replace("_", ""))


def _construct_map(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
            if key_node.value in seen:
                loader.twice.append(f'line {key_node.start_mark.line + 1}: key "{key_node.value}" already set in map')
            seen.add(key_node.value)
    loader.flatten_mapping(node)
    return {_key(loader.construct_object(k, deep=True)): loader.construct_object(v, deep=True) for k, v in node.value}


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _construct_list(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


def _construct_binary(loader: _Loader, node: yaml.ScalarNode) -> str:
    found: bytes = loader.construct_yaml_binary(node)
    return found.decode("utf-8", "replace")


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return "null" if key is None else str(key)


_Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)
# Of YAML's other types only those are left that JSON can say.
_Loader.add_constructor("tag:yaml.org,2002:set", _construct_map)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _construct_text)
for _tag in ("omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct_list)
_Loader.add_constructor("tag:yaml.org,2002:binary", _construct_binary)


def load(text: bytes) -> tuple[Any, list[str]]:
    """(the first document, the keys that it gives twice). Raises YamlError.

    JSON, which is YAML and what most clients send as such, is read as JSON: a thousand times faster."""
    if isinstance(text, Loaded):
        if text.error is not None:
            raise YamlError(text.error)
        return text.value, text.twice
    if text.lstrip()[:1] == b"{":
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
        else:
            if (
                b"\\u" not in text
                and not json_text.too_deep(text, value)
                and json_text.count_keys(value) == len(_KEYS.findall(text))
            ):
                return value, []
    try:
        loader = _Loader(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise YamlError(_words(error)) from error
    loader.twice = []
    try:
        node = loader.get_node() if loader.check_node() else None
        if node is None:
            return None, []
        _check_aliases(node)
        value = loader.construct_document(node)
        if isinstance(value, (dict, list)) and json_text.deeper(value):
            raise YamlError("exceeded max depth")
        return value, loader.twice
    except RecursionError:
        raise YamlError("exceeded max depth of 10000") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise YamlError(_words(error)) from error
    finally:
        loader.dispose()


_KEYS = re.compile(rb'"\s*:')
_FEW, _MANY = 400_000, 4_000_000


def _check_aliases(root: yaml.Node) -> None:
    """A text may say a thing once and name it often, so that some lines stand for gigabytes. As Go's yaml.v2: of up to
    400,000 values 99 % may come by name, of 4,000,000 and more 10 %. Raises YamlError."""
    sizes: dict[int, int] = {}
    whole = _size(root, sizes)
    named = whole - len(sizes)
    if whole <= 100 or named <= 100:
        return
    many = min(max(whole, _FEW), _MANY)
    allowed = 0.99 - 0.89 * (many - _FEW) / (_MANY - _FEW)
    if named / whole > allowed:
        raise YamlError("document contains excessive aliasing")


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for, with everything that it names; `sizes` remembers them by the node's id."""
    found = sizes.get(id(node))
    if found == 0:
        raise YamlError("a value contains itself")
    if found is None:
        sizes[id(node)] = 0
        found = 1
        if isinstance(node, yaml.SequenceNode):
            found += sum(_size(each, sizes) for each in node.value)
        elif isinstance(node, yaml.MappingNode):
            found += sum(_size(key, sizes) + _size(value, sizes) for key, value in node.value)
        sizes[id(node)] = found
    return found


def _words(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        problem = error.problem or str(error)
        if problem.startswith("mapping values are not allowed"):
            problem = "mapping values are not allowed in this context"
        elif problem.startswith("found character"):
            problem = "found character that cannot start any token"
        line = error.problem_mark.line if error.problem_mark is not None else 0
        return f"line {line + 1}: {problem}" if line else problem
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Dumper(yaml.SafeDumper):
    """Strings as Go writes them: literal blocks for several lines, double quotes where quotes are needed."""


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    needs_quotes = _BOOLEANS.match(text) or _INTEGERS.match(text) or _FLOATS.match(text) or _DATE.match(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if needs_quotes or not text else None)


_DATE = re.compile(r"^\d{4}-\d\d-\d\d([Tt ].*)?$")
_Dumper.add_representer(str, _represent_string)
_Dumper.add_multi_representer(dict, _Dumper.represent_dict)
_Dumper.add_multi_representer(list, _Dumper.represent_list)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def dump(value: Any) -> bytes:
    """The value as YAML, keys sorted, as sigs.k8s.io/yaml writes it."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, width=2**20).encode()
