"""What a client accepts: JSON, YAML, protobuf, a Table, only the metadata, and in which version. Decided once per
header text.

Whoever takes JSON gets JSON, since that is what is stored; protobuf is for clients that take nothing else, and for
metadata alone, which is made for the answer in any case.

Two doors, as upstream: the route knows which media types exist at all (406 with the available ones), then the handler
looks for the first clause, best quality first, whose parameters it can keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from kone.apimachinery.errors import StatusError

Media = Literal["json", "yaml", "protobuf"]
Transform = Literal["", "Table", "PartialObjectMetadata", "PartialObjectMetadataList"]

JSON: Final = "application/json"
YAML: Final = "application/yaml"
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
OBJECT_TYPES: Final = (JSON, YAML, PROTOBUF)
STREAM_TYPES: Final = (JSON, YAML, PROTOBUF, JSON + ";stream=watch", PROTOBUF + ";stream=watch")
META_GROUP: Final = "meta.k8s.io"


_CONTENT_TYPES: Final[Mapping[Media, str]] = {"json": JSON, "yaml": YAML, "protobuf": PROTOBUF}


@dataclass(frozen=True, slots=True)
class Output:
    """How an answer is written. `meta_version` is the apiVersion of a Table or PartialObjectMetadata."""

    media: Media = "json"
    transform: Transform = ""
    meta_version: str = "meta.k8s.io/v1"
    pretty: bool = False

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self.media]


PLAIN: Final = Output()


@dataclass(frozen=True, slots=True)
class Clause:
    """One part of an Accept header."""

    media_type: str
    parameters: tuple[tuple[str, str], ...]
    quality: float


@lru_cache(maxsize=512)
def parse_accept(header: str) -> tuple[Clause, ...]:
    """The clauses of an Accept header, best first; a wildcard comes after what it covers."""
    found: list[Clause] = []
    for part in header.split(","):
        media_type, *rest = (text.strip() for text in part.split(";"))
        if not media_type:
            continue
        quality, parameters = 1.0, []
        for text in rest:
            name, _, value = (piece.strip() for piece in text.partition("="))
            if name == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 1.0
            elif name:
                parameters.append((name, value))
        found.append(Clause(media_type, tuple(parameters), quality))
    return tuple(sorted(found, key=lambda clause: (-clause.quality, clause.media_type.count("*"))))


@lru_cache(maxsize=512)
def negotiate(
    header: str,
    *,
    transforms: bool = True,
    tables: bool = True,
    streams: bool = False,
    routed: bool = True,
    protobuf: bool = False,
) -> Output:
    """How to answer a request with this Accept header; not `routed`: upstream's route takes every header there.
    `protobuf`: what is asked for has such a form.

    Raises 406 NotAcceptable.
    """
    if not header or header == "*/*":
        return PLAIN
    if routed:
        _check_route(header, STREAM_TYPES if streams else OBJECT_TYPES)
    for clause in parse_accept(header):
        if clause.media_type in (JSON, "*/*"):
            media: Media = "json"
        elif clause.media_type == YAML:
            media = "yaml"
        elif clause.media_type == PROTOBUF and _asks_for_metadata(clause):
            media = "protobuf"
        else:
            continue
        output = _output(clause, media, transforms)
        if output is not None and (tables or output.transform != "Table"):
            return output
    if protobuf and any(clause.media_type == PROTOBUF and not _transforms(clause) for clause in parse_accept(header)):
        return Output("protobuf")
    raise not_acceptable("only the following media types are accepted: " + ", ".join(OBJECT_TYPES))


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding says so; upstream knows the plain word alone, without a quality."""
    return any(token.strip() == "gzip" for token in header.split(","))


def check_json_route(header: str) -> None:
    """For what is JSON only (/version). Raises 406."""
    if header:
        _check_route(header, (JSON,))


def _check_route(header: str, available: tuple[str, ...]) -> None:
    for part in header.split(","):
        media_type = part.split(";")[0].strip()
        if media_type == "*/*" or media_type in available:
            return
    message = "406: Not Acceptable\n\nAvailable representations: " + ", ".join(available)
    raise StatusError(406, "NotAcceptable", message, details={})


def _transforms(clause: Clause) -> bool:
    """Whether a Table or metadata are asked for: a Table has no protobuf form."""
    return any(name == "as" for name, _ in clause.parameters)


def _asks_for_metadata(clause: Clause) -> bool:
    return dict(clause.parameters).get("as", "").startswith("PartialObjectMetadata")


def _output(clause: Clause, media: Media, transforms: bool) -> Output | None:
    """What the clause's parameters ask for, None where they ask for what is not there."""
    values = dict(clause.parameters)
    kind, group, version = values.get("as", ""), values.get("g", ""), values.get("v", "")
    pretty = values.get("pretty") == "1"
    if not kind:
        return Output(media, pretty=pretty)
    if not transforms or group != META_GROUP or version not in ("v1", "v1beta1"):
        return None
    meta_version = f"{group}/{version}"
    if kind == "Table":
        return Output(media, "Table", meta_version, pretty)
    if kind == "PartialObjectMetadata":
        return Output(media, "PartialObjectMetadata", meta_version, pretty)
    if kind == "PartialObjectMetadataList":
        return Output(media, "PartialObjectMetadataList", meta_version, pretty)
    return None


def not_acceptable(message: str) -> StatusError:
    return StatusError(406, "NotAcceptable", message)
