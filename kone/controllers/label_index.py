"""Finding the pods of a selector and the selectors of a pod without walking over all of either.

Pods are kept under each of their labels, Services under one term of their selector: both sides look only at candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kone.apimachinery.objects import Object, dig, labels_of, namespace_of
from kone.client.client import Informer, Objects

_LABELS, _SELECTOR = "labels", "selector"


def index_by_labels(informer: Informer) -> None:
    """Let `selected` look objects up by their labels."""
    informer.add_index(_LABELS, _label_keys)


def selected(informer: Informer, namespace: str, selector: Mapping[str, str]) -> Objects:
    """The namespace's objects with all those labels; the empty selector selects all."""
    if not selector:
        return informer.list(namespace)
    name, value = min(selector.items())
    candidates = informer.by_index(_LABELS, f"{namespace}/{name}={value}")
    return [obj for obj in candidates if selector.items() <= labels_of(obj).items()]


def index_by_selector(services: Informer) -> None:
    """Let `selecting` look Services up by their spec.selector."""
    services.add_index(_SELECTOR, _selector_keys)


def selecting(services: Informer, namespace: str, labels: Mapping[str, str]) -> Objects:
    """The namespace's Services whose selector those labels satisfy; one without a selector selects nothing."""
    found: Objects = []
    for key in [f"{namespace}/", *(f"{namespace}/{name}={value}" for name, value in labels.items())]:
        for service in services.by_index(_SELECTOR, key):
            if service["spec"]["selector"].items() <= labels.items():
                found.append(service)
    return found


def _label_keys(obj: Object) -> Iterable[str]:
    return [f"{namespace_of(obj)}/{name}={value}" for name, value in labels_of(obj).items()]


def _selector_keys(service: Object) -> Iterable[str]:
    selector = dig(service, "spec", "selector")
    if selector is None:
        return ()
    if not selector:
        return (f"{namespace_of(service)}/",)
    name, value = min(selector.items())
    return (f"{namespace_of(service)}/{name}={value}",)
