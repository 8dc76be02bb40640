"""The scheduling framework: upstream's extension points, and one run of them for one pod. It decides, it does nothing.

A plugin overrides the points it has something to say at; `Framework` finds out which. Points that only look are plain
functions on the cluster as it is now; what has to be done (binding, preempting) comes back as a value.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import Any, ClassVar

from kone.apimachinery.errors import FieldError
from kone.apimachinery.objects import Object
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import REMEMBERED, Cluster, NodeInfo

MAX_SCORE = 100
NO_ARGUMENTS: Mapping[str, Any] = {}
SIGNATURES_MAX = 10_000  # remembered; then all are numbered anew


class Code(Enum):
    SUCCESS = auto()
    UNSCHEDULABLE = auto()  # removing other pods could help
    UNRESOLVABLE = auto()  # it could not (UnschedulableAndUnresolvable)
    SKIP = auto()  # the plugin has nothing to do with this pod


@dataclass(frozen=True, slots=True)
class Status:
    """What a plugin answers when it does not simply agree (None)."""

    code: Code
    reasons: tuple[str, ...] = ()
    plugin: str = ""

    @property
    def message(self) -> str:
        return ", ".join(self.reasons)


def unschedulable(*reasons: str) -> Status:
    return Status(Code.UNSCHEDULABLE, reasons)


def unresolvable(*reasons: str) -> Status:
    return Status(Code.UNRESOLVABLE, reasons)


SKIP = Status(Code.SKIP)


class Happened(Flag):
    """What changed in the cluster, as far as it can make a pod schedulable."""

    NODE_ADDED = auto()
    NODE_ALLOCATABLE = auto()
    NODE_LABELS = auto()
    NODE_TAINTS = auto()  # and spec.unschedulable
    NODE_FEATURES = auto()  # that it declares
    NODE_GONE = auto()
    POD_ADDED = auto()  # a pod was bound
    POD_LABELS = auto()  # of a bound pod
    POD_SCALED_DOWN = auto()  # a bound pod asks for less
    POD_GONE = auto()  # a bound pod was deleted or has finished
    SELF_LABELS = auto()  # the waiting pod itself
    SELF_TOLERATIONS = auto()
    SELF_GATES = auto()
    SELF_SCALED_DOWN = auto()
    NAMESPACE_LABELS = auto()
    CLAIM = auto()  # a persistent volume claim is new or has changed
    VOLUME = auto()  # a persistent volume
    STORAGE_CLASS = auto()
    CSI_NODE = auto()
    CSI_DRIVER = auto()
    STORAGE_CAPACITY = auto()  # what a driver says it has left
    DETACHED = auto()  # a volume attachment is gone
    RESOURCE_CLAIM = auto()
    RESOURCE_SLICE = auto()  # or a rule that taints devices
    DEVICE_CLASS = auto()
    SELF_CLAIMS = auto()  # the waiting pod's status names claims that were made for it

    NODE = NODE_ADDED | NODE_ALLOCATABLE | NODE_LABELS | NODE_TAINTS | NODE_FEATURES
    POD = POD_ADDED | POD_LABELS | POD_SCALED_DOWN | POD_GONE


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """One change: the object before (None: it is new) and after (None: it is gone)."""

    what: Happened
    old: Object | None = None
    new: Object | None = None


class PluginError(Exception):
    """A plugin cannot work a pod out; the text, which names the plugin, is for the pod's user."""


class CycleState:
    """What plugins remember within one cycle, by plugin name. `clone` is for trying things on."""

    __slots__ = ("data", "skip_filter", "skip_score")

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.skip_filter: set[str] = set()
        self.skip_score: set[str] = set()

    def clone(self) -> CycleState:
        copy = CycleState()
        copy.data = {k: v.clone() if hasattr(v, "clone") else v for k, v in self.data.items()}
        copy.skip_filter, copy.skip_score = self.skip_filter, self.skip_score
        return copy


@dataclass(frozen=True, slots=True)
class OnlyNodes:
    """A pre_filter's answer: no other nodes need be looked at."""

    names: frozenset[str]


class Plugin:
    """One scheduling plugin; see each point for when it is asked. `wakes_on` and `wakes` are the queueing hint: which
    changes may make a pod schedulable that this plugin refused."""

    name: ClassVar[str]
    weight: ClassVar[int] = 1  # of its score
    wakes_on: ClassVar[Happened] = Happened(0)
    arguments: ClassVar[Mapping[str, Any]] = {}  # the shape of `args`, as apimachinery.config_files has shapes

    def __init__(self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        self.cluster = cluster

    @classmethod
    def has_any(cls, points: Iterable[str]) -> bool:
        """Whether the plugin has something to say at one of the points."""
        return any(getattr(cls, point) is not getattr(Plugin, point) for point in points)

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        """What is wrong with its arguments beside their shape."""
        return ()

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        return True

    def sign(self, pod: PodInfo) -> Hashable:
        """What of the pod `filter` and `score` read, where beside it they read the node alone and `pre_filter` and
        `pre_score` remember nothing: pods with equal signs are judged alike, so a node that has not changed is not
        asked again. None: they read more."""
        return None

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        """May the pod be scheduled at all? Otherwise it is gated until an event of `wakes_on`."""
        return None

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | OnlyNodes | None:
        """Once a cycle, before nodes are filtered: remember in `state`, SKIP, narrow the nodes, or refuse all."""
        return None

    def add_pod(self, state: CycleState, pod: PodInfo, added: PodInfo, node: NodeInfo) -> None:
        """Mend what pre_filter remembered: as if `added` were on the node, too."""

    def remove_pod(self, state: CycleState, pod: PodInfo, removed: PodInfo, node: NodeInfo) -> None:
        """Mend what pre_filter remembered: as if `removed` were not on the node."""

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """Does the pod fit the node?"""
        return None

    def post_filter(self, framework: Framework, pod: PodInfo, failure: NoFit) -> Remedy | None:
        """No node fits: what can be done about it. None: the plugin has nothing to say."""
        return None

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        """Once a cycle, before the nodes that fit are scored: remember, or SKIP."""
        return None

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        """How good is the node? Any scale, where normalize follows; else 0 to MAX_SCORE."""
        return 0

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        """Bring the nodes' scores, in place, to 0 to MAX_SCORE."""

    def reserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """The pod has been assumed on the node: set aside what it needs."""
        return None

    def unreserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        """It did not come to a binding: give back. Idempotent."""

    def permit(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """The last word before binding."""
        return None

    def will_pre_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> bool:
        """Whether `pre_bind` has something to do: then others are told the node before it is done."""
        return True

    async def pre_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """What must be done before the binding, e.g. volumes."""
        return None

    async def post_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        """The pod is bound."""


def spread_scores(scores: dict[str, int], *, reverse: bool = False) -> None:
    """In place: the highest becomes MAX_SCORE, the others in proportion; `reverse`: the highest becomes 0."""
    highest = max(scores.values(), default=0)
    for name, score in scores.items():
        share = MAX_SCORE * score // highest if highest else 0
        scores[name] = MAX_SCORE - share if reverse else share


@dataclass(slots=True)
class Diagnosis:
    """Why no node fits: by node, or for all alike."""

    by_node: dict[str, Status] = field(default_factory=dict)
    others: Status = field(default_factory=lambda: Status(Code.UNRESOLVABLE))  # of nodes not in by_node
    pre_filter_message: str = ""
    plugins: set[str] = field(default_factory=set)  # that refused
    post_filter_message: str = ""

    def status_of(self, node: str) -> Status:
        return self.by_node.get(node, self.others)

    def message(self, node_count: int) -> str:
        """In upstream's words: "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable. …"."""
        text = f"0/{node_count} nodes are available:"
        if self.pre_filter_message:
            text += f" {self.pre_filter_message}."
        else:
            counts: dict[str, int] = {}
            for status in self.by_node.values():
                for reason in status.reasons:
                    counts[reason] = counts.get(reason, 0) + 1
            absent = node_count - len(self.by_node)
            if absent > 0:
                for reason in self.others.reasons:
                    counts[reason] = counts.get(reason, 0) + absent
            if counts:
                text += f" {', '.join(sorted(f'{count} {reason}' for reason, count in counts.items()))}."
        if self.post_filter_message:
            text += f" {self.post_filter_message}"
        return text


@dataclass(frozen=True, slots=True)
class Remedy:
    """What a post_filter found: what is said of it; a node that is promised to the pod ("" takes an earlier promise
    back, None leaves it), which ends the search for other remedies; and what is to be done meanwhile."""

    message: str
    nominated: str | None = None
    deed: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """The node for the pod, and what the cycle knew."""

    node: NodeInfo
    state: CycleState


@dataclass(frozen=True, slots=True)
class NoFit:
    """No node fits. `state` is kept for preemption; `node_count` is how many there are."""

    diagnosis: Diagnosis
    state: CycleState
    node_count: int


class Nominator:
    """Pods that wait for their victims to go, by the node that was promised to them."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, PodInfo]] = {}
        self._where: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._where)

    def set(self, pod: PodInfo, node: str) -> None:
        """Promise the pod a node; "" takes the promise back."""
        self.remove(pod.uid)
        if node:
            self._by_node.setdefault(node, {})[pod.uid] = pod
            self._where[pod.uid] = node

    def remove(self, uid: str) -> None:
        node = self._where.pop(uid, None)
        if node is not None:
            del self._by_node[node][uid]
            if not self._by_node[node]:
                del self._by_node[node]

    def node_of(self, uid: str) -> str:
        return self._where.get(uid, "")

    def on(self, node: str) -> list[PodInfo]:
        return list(self._by_node.get(node, {}).values())


@dataclass(slots=True)
class Judgement:
    """What the signing plugins say of a node for all pods of one signature: why it does not fit, or how good it is."""

    status: Status | None
    score: int | None = None  # weighted; of those that need no normalizing


class Framework:
    """Runs the plugins, in the order given, over one pod."""

    def __init__(
        self,
        cluster: Cluster,
        plugins: Iterable[Plugin],
        nominator: Nominator,
        *,
        points: Mapping[str, Mapping[str, int]] | None = None,
        percentage: int = 0,
    ) -> None:
        """`points`: for each of this class's points, its plugins in order, with their weights; without it each plugin
        is at all points that it has. `percentage` of the nodes is enough to choose among; 0: see `enough`."""
        self.cluster = cluster
        self.plugins = tuple(plugins)
        self.nominator = nominator
        self.percentage = percentage
        self._next_start = 0
        self.by_name: Mapping[str, Plugin] = {plugin.name: plugin for plugin in self.plugins}
        everywhere = {plugin.name: plugin.weight for plugin in self.plugins}
        chosen = points if points is not None else {}
        self._weights = {**everywhere, **chosen.get("score", {})}
        self._points: Mapping[str, tuple[Plugin, ...]] = {
            point: tuple(
                self.by_name[name]
                for name in chosen.get(point, everywhere)
                if name in self.by_name and self.by_name[name].has_any([point])
            )
            for point in (
                "pre_enqueue",
                "pre_filter",
                "add_pod",
                "remove_pod",
                "filter",
                "post_filter",
                "pre_score",
                "score",
                "normalize",
                "reserve",
                "unreserve",
                "permit",
                "pre_bind",
                "post_bind",
            )
        }
        normalizing = self.at("normalize")
        signing = {p for p in self.plugins if type(p).sign is not Plugin.sign}
        self._signing = tuple(p for p in self.plugins if p in signing)
        self._signed_filters = tuple(p for p in self.at("filter") if p in signing)
        self._other_filters = tuple(p for p in self.at("filter") if p not in signing)
        self._signed_scores = tuple(p for p in self.at("score") if p in signing and p not in normalizing)
        self._other_scores = tuple(p for p in self.at("score") if p not in self._signed_scores)
        self._signatures: dict[tuple[Hashable, ...], int] = {}
        self._next_signature = itertools.count()

    def at(self, point: str) -> tuple[Plugin, ...]:
        """The plugins that have something to say there."""
        return self._points[point]

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        """The first refusal, named after its plugin."""
        for plugin in self.at("pre_enqueue"):
            if (status := plugin.pre_enqueue(pod)) is not None:
                return Status(status.code, status.reasons, plugin.name)
        return None

    def place(self, pod: PodInfo) -> Placement | NoFit:
        """Find the best node that fits; there must be at least one node."""
        state = CycleState()
        nodes = self.cluster.nodes()
        diagnosis = Diagnosis()
        chosen = self._pre_filter(state, pod, nodes, diagnosis)
        if chosen is None:
            return NoFit(diagnosis, state, len(nodes))
        promised = self.cluster.node(self.nominator.node_of(pod.uid) or pod.nominated_node)
        if promised is not None and promised in chosen and self.fits(state, pod, promised) is None:
            return Placement(promised, state)
        feasible = self._feasible(state, pod, chosen, diagnosis)
        if not feasible:
            return NoFit(diagnosis, state, len(nodes))
        return Placement(self._best(state, pod, feasible), state)

    def _pre_filter(
        self, state: CycleState, pod: PodInfo, nodes: list[NodeInfo], diagnosis: Diagnosis
    ) -> list[NodeInfo] | None:
        """The nodes to look at; None where the pod was refused by all at once."""
        only: frozenset[str] | None = None
        narrowing: list[str] = []
        for plugin in self.at("pre_filter"):
            answer = plugin.pre_filter(state, pod, nodes)
            if isinstance(answer, OnlyNodes):
                narrowing.append(plugin.name)
                only = answer.names if only is None else only & answer.names
                if not only:
                    answer = unresolvable(
                        f"node(s) didn't satisfy plugin(s) [{' '.join(sorted(narrowing))}] simultaneously"
                        if len(narrowing) > 1
                        else f"node(s) didn't satisfy plugin {plugin.name}"
                    )
            if isinstance(answer, Status):
                if answer.code is Code.SKIP:
                    state.skip_filter.add(plugin.name)
                    continue
                diagnosis.others = answer
                diagnosis.pre_filter_message = answer.message
                diagnosis.plugins.add(plugin.name)
                return None
        if only is None:
            return nodes
        diagnosis.plugins.update(narrowing)
        diagnosis.others = unresolvable(f"node(s) didn't satisfy plugin(s) [{' '.join(sorted(narrowing))}]")
        return [node for node in nodes if node.name in only]

    def _feasible(
        self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo], diagnosis: Diagnosis
    ) -> list[NodeInfo]:
        wanted = enough(len(nodes), self.percentage)
        feasible: list[NodeInfo] = []
        start = self._next_start % len(nodes) if nodes else 0
        looked_at = 0
        signature = self._signature(pod)
        # Most pods are judged by what they share with those before them: then a node costs one look-up.
        others = self.nominator or any(plugin.name not in state.skip_filter for plugin in self._other_filters)
        for node in (*nodes[start:], *nodes[:start]):
            looked_at += 1
            judgement = node.judged.get(signature) or self._judge(signature, state, pod, node)
            status = self.fits(state, pod, node) if others else judgement.status
            if status is None:
                feasible.append(node)
                if len(feasible) >= wanted:
                    break
            else:
                diagnosis.by_node[node.name] = status
                diagnosis.plugins.add(status.plugin)
        # The next pod begins where this one ended, so that equal nodes take turns.
        self._next_start += looked_at if looked_at < len(nodes) else 1
        return feasible

    def fits(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """Whether the pod fits, with and without the pods of at least its priority that were promised the node."""
        others = [
            other
            for other in self.nominator.on(node.name)
            if other.uid != pod.uid and other.priority >= pod.priority and other.uid not in node.pods
        ]
        if others:
            crowded_state, crowded = state.clone(), node.clone()
            for other in others:
                crowded.add(other)
                self.add_pod(crowded_state, pod, other, crowded)
            if (status := self.filter(crowded_state, pod, crowded)) is not None:
                return status
        return self.filter(state, pod, node)

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """The first plugin's refusal, named after it; those that sign are asked first."""
        if (status := self._judge(self._signature(pod), state, pod, node).status) is not None:
            return status
        return self._first_refusal(self._other_filters, state, pod, node)

    def _judge(self, signature: int, state: CycleState, pod: PodInfo, node: NodeInfo) -> Judgement:
        found: Judgement | None = node.judged.get(signature)
        if found is None:
            if len(node.judged) >= REMEMBERED:
                node.judged.clear()
            found = Judgement(self._first_refusal(self._signed_filters, state, pod, node))
            node.judged[signature] = found
        return found

    def _signature(self, pod: PodInfo) -> int:
        """A number for what the signing plugins read of the pod."""
        found = pod.signatures.get(self)
        if found is None:
            signs = tuple(plugin.sign(pod) for plugin in self._signing)
            found = pod.signatures[self] = self._signatures.setdefault(signs, next(self._next_signature))
            if len(self._signatures) > SIGNATURES_MAX:
                self._signatures.clear()
        return found

    @staticmethod
    def _first_refusal(plugins: Iterable[Plugin], state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        for plugin in plugins:
            if plugin.name in state.skip_filter:
                continue
            if (status := plugin.filter(state, pod, node)) is not None:
                return status if status.plugin else Status(status.code, status.reasons, plugin.name)
        return None

    def add_pod(self, state: CycleState, pod: PodInfo, added: PodInfo, node: NodeInfo) -> None:
        for plugin in self.at("add_pod"):
            if plugin.name not in state.skip_filter:
                plugin.add_pod(state, pod, added, node)

    def remove_pod(self, state: CycleState, pod: PodInfo, removed: PodInfo, node: NodeInfo) -> None:
        for plugin in self.at("remove_pod"):
            if plugin.name not in state.skip_filter:
                plugin.remove_pod(state, pod, removed, node)

    def post_filter(self, pod: PodInfo, failure: NoFit) -> Remedy:
        """The first remedy that promises a node; where there is none, what all say."""
        said: list[str] = []
        nominated: str | None = None
        deeds = []
        for plugin in self.at("post_filter"):
            remedy = plugin.post_filter(self, pod, failure)
            if remedy is None:
                continue
            if remedy.nominated:
                return remedy
            said += [remedy.message] if remedy.message else []
            nominated = remedy.nominated if remedy.nominated is not None else nominated
            deeds += [remedy.deed] if remedy.deed is not None else []

        async def do_all() -> None:
            for deed in deeds:
                await deed()

        return Remedy(", ".join(said), nominated, do_all if deeds else None)

    def _best(self, state: CycleState, pod: PodInfo, nodes: list[NodeInfo]) -> NodeInfo:
        if len(nodes) == 1:
            return nodes[0]
        for plugin in self.at("pre_score"):
            status = plugin.pre_score(state, pod, nodes)
            if status is not None and status.code is Code.SKIP:
                state.skip_score.add(plugin.name)
        signature = self._signature(pod)
        totals = {
            node.name: judgement.score
            if (judgement := node.judged.get(signature)) and judgement.score is not None
            else self._signed_score(signature, state, pod, node)
            for node in nodes
        }
        normalizing = self.at("normalize")
        for plugin in self._other_scores:
            if plugin.name in state.skip_score:
                continue
            scores = {node.name: plugin.score(state, pod, node) for node in nodes}
            if plugin in normalizing:
                plugin.normalize(state, pod, scores)
            for name, score in scores.items():
                totals[name] += self._weights[plugin.name] * score
        best = self.cluster.node(max(totals, key=totals.__getitem__))
        assert best is not None
        return best

    def _signed_score(self, signature: int, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        judgement = self._judge(signature, state, pod, node)
        if judgement.score is None:
            judgement.score = sum(
                self._weights[plugin.name] * plugin.score(state, pod, node)
                for plugin in self._signed_scores
                if plugin.name not in state.skip_score
            )
        return judgement.score

    def reserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """Reserve and permit; a refusal gives back what was set aside."""
        for point in ("reserve", "permit"):
            for plugin in self.at(point):
                if (status := getattr(plugin, point)(state, pod, node)) is not None:
                    self.unreserve(state, pod, node)
                    return Status(status.code, status.reasons, plugin.name)
        return None

    def unreserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        for plugin in reversed(self.at("unreserve")):
            plugin.unreserve(state, pod, node)


def enough(node_count: int, percentage: int = 0) -> int:
    """How many nodes that fit are enough to choose among: all of 100, then the percentage, or, where it is 0, a share
    that falls to 5 % (schedule_one.go, numFeasibleNodesToFind)."""
    if node_count < 100:
        return node_count
    return min(max(node_count * (percentage or max(50 - node_count // 125, 5)) // 100, 100), node_count)
