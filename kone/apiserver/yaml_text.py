"""YAML as Kubernetes reads and writes it: the JSON data model, YAML 1.1's words for booleans, dates as text.

Reading is PyYAML's loader with the scalars of Go's yaml.v2; keys that are given twice are reported, the last one wins.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlError(ValueError):
    """The text is not YAML; what upstream says after "yaml: "."""


class _Loader(yaml.SafeLoader):
    twice: list[str]


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


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits, 8 if len(digits) > 1 and digits[0] == "0" else 10)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).replace("_", ""))


def _construct_map(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
            if key_node.value in seen:
                loader.twice.append(f'line {key_node.start_mark.line + 1}: key "{key_node.value}" already set in map')
            seen.add(key_node.value)
    loader.flatten_mapping(node)
    return {_key(loader.construct_object(k, deep=True)): loader.construct_object(v, deep=True) for k, v in node.value}


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return "null" if key is None else str(key)


_Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)


def load(text: bytes) -> tuple[Any, list[str]]:
    """(the first document, the keys that it gives twice). Raises YamlError."""
    try:
        loader = _Loader(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise YamlError(_words(error)) from error
    loader.twice = []
    try:
        if not loader.check_data():  # type: ignore[no-untyped-call]
            return None, []
        return loader.get_data(), loader.twice
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise YamlError(_words(error)) from error
    finally:
        loader.dispose()


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
