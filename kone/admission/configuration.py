"""AdmissionConfiguration: the file that gives admission plugins their own configurations, within it or by path.

What a plugin takes is decoded by its own module; a file of upstream's older form, which configures ImagePolicyWebhook
or PodNodeSelector directly, is taken, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kone.apimachinery.config_files import ANY, ConfigFileError, load
from kone.apimachinery.objects import Object

API_VERSIONS = ("apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1")
UNVERSIONED: Mapping[str, str] = {"imagePolicy": "ImagePolicyWebhook", "podNodeSelectorPluginConfig": "PodNodeSelector"}
SHAPE = {"plugins": [{"name": str, "path": str, "configuration": ANY}]}

Configurations = Mapping[str, str]
"""The text (YAML or JSON) of each plugin's configuration; a plugin that has none is not in it."""


def parse_configurations(text: str, directory: Path) -> Configurations:
    """What a file says; paths in it are relative to `directory`. Raises ConfigFileError."""
    import json

    import yaml  # only where such a file is given: start-up time is imports

    try:
        raw = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigFileError(" ".join(str(error).split())) from None
    if isinstance(raw, dict) and not raw.get("kind") and any(key in raw for key in UNVERSIONED):
        return dict.fromkeys(UNVERSIONED.values(), text)
    found: dict[str, str] = {}
    for plugin in load(text, "AdmissionConfiguration", API_VERSIONS, SHAPE).get("plugins") or ():
        name = plugin.get("name") or ""
        if name in found:
            continue
        if plugin.get("configuration") is not None:
            found[name] = json.dumps(plugin["configuration"])
        elif plugin.get("path"):
            path = directory / plugin["path"]
            try:
                found[name] = path.read_text()
            except OSError as error:
                raise ConfigFileError(f"plugin {name}: {path}: {error.strerror}") from None
    return found


def unversioned(text: str, key: str) -> Object:
    """What a configuration without a kind has under `key`; nothing where it has none. Raises ConfigFileError."""
    import yaml

    try:
        found: Any = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigFileError(" ".join(str(error).split())) from None
    inner = found.get(key) if isinstance(found, dict) else None
    if inner is not None and not isinstance(inner, dict):
        raise ConfigFileError(f"{key}: expected an object")
    return inner or {}
