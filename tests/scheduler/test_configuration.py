"""KubeSchedulerConfiguration: which plugins a profile has, what they are told, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.kinds import EVENTS, NODES, PODS
from kone.apimachinery.objects import Object, dig, find_condition
from kone.client.events import EventRecorder
from kone.scheduler.configuration import Configuration, default_configuration, parse_configuration
from kone.scheduler.plugins import DEFAULT
from kone.scheduler.scheduler import Scheduler
from tests.fakes import FakeClient
from tests.scheduler.support import node, pod


def text(**fields: object) -> str:
    head = {"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"}
    return yaml.safe_dump({**head, **fields})


def told(plugin: str, **args: object) -> Object:
    """A configuration that tells one plugin something."""
    return {"profiles": [{"pluginConfig": [{"name": plugin, "args": args}]}]}


def parsed(**profile: object) -> Configuration:
    return parse_configuration(text(profiles=[profile]))


def test_nothing_said_is_the_default() -> None:
    assert parse_configuration(text()) == default_configuration()
    [profile] = default_configuration().profiles
    assert profile.name == "default-scheduler"
    assert list(profile.points["preEnqueue"]) == ["SchedulingGates", "DynamicResources", "DefaultPreemption"]
    assert list(profile.points["filter"]) == [
        "NodeName",
        "NodeUnschedulable",
        "TaintToleration",
        "NodeAffinity",
        "NodePorts",
        "NodeResourcesFit",
        "VolumeRestrictions",
        "NodeVolumeLimits",
        "VolumeBinding",
        "VolumeZone",
        "PodTopologySpread",
        "InterPodAffinity",
        "DynamicResources",
        "NodeDeclaredFeatures",
    ]
    assert profile.points["score"] == {
        "TaintToleration": 3,
        "NodeAffinity": 2,
        "NodeResourcesFit": 1,
        "VolumeBinding": 1,
        "PodTopologySpread": 2,
        "InterPodAffinity": 2,
        "DynamicResources": 2,
        "NodeResourcesBalancedAllocation": 1,
        "ImageLocality": 1,
    }
    assert list(profile.points["preBind"]) == ["VolumeBinding", "DynamicResources"]


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        pytest.param(
            {"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "ImageLocality", "weight": 7}]}},
            {"ImageLocality": 7},
            id="one only",
        ),
        pytest.param(
            {
                "multiPoint": {
                    "disabled": [{"name": "*"}],
                    "enabled": [
                        {"name": "NodeAffinity"},
                        *({"name": name} for name in ("PrioritySort", "DefaultBinder")),
                    ],
                }
            },
            {"NodeAffinity": 2},
            id="everywhere only some",
        ),
        pytest.param(
            {
                "multiPoint": {
                    "disabled": [{"name": "ImageLocality"}],
                    "enabled": [{"name": "NodeAffinity", "weight": 9}],
                },
                "score": {
                    "disabled": [{"name": "TaintToleration"}],
                    "enabled": [{"name": "InterPodAffinity", "weight": 4}],
                },
            },
            {
                "NodeAffinity": 9,
                "NodeResourcesFit": 1,
                "VolumeBinding": 1,
                "PodTopologySpread": 2,
                "InterPodAffinity": 4,
                "DynamicResources": 2,
                "NodeResourcesBalancedAllocation": 1,
            },
            id="weights and absences",
        ),
    ],
)
def test_who_scores(plugins: Object, expected: dict[str, int]) -> None:
    [profile] = parsed(plugins=plugins).profiles
    assert profile.points["score"] == expected


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"profile": []}, 'strict decoding error: unknown field "profile"'),
        ({"parallelism": 0}, "parallelism: Invalid value: 0: should be an integer value greater than zero"),
        ({"percentageOfNodesToScore": 101}, "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]"),
        ({"extenders": [{"urlPrefix": "http://x"}]}, "extenders: Forbidden: extenders are not served"),
        (
            {"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]},
            'profiles[1].schedulerName: Duplicate value: "a"',
        ),
        ({"profiles": [{"schedulerName": "a"}, {}]}, "profiles[1].schedulerName: Required value"),
        (
            {"profiles": [{"plugins": {"score": {"enabled": [{"name": "Nobody"}]}}}]},
            'profiles[0].plugins.score.enabled[0]: Invalid value: "Nobody": there is no such plugin',
        ),
        (
            {"profiles": [{"plugins": {"score": {"enabled": [{"name": "NodeName"}]}}}]},
            'profiles[0].plugins.score.enabled[0]: Invalid value: "NodeName": the plugin does nothing at score',
        ),
        (
            told("InterPodAffinity", hardPodAffinityWeight=101),
            "profiles[0].pluginConfig[0].args.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
        ),
        (
            told("NodeResourcesFit", scoringStrategy={"type": "RequestedToCapacityRatio"}),
            "profiles[0].pluginConfig[0].args.scoringStrategy.requestedToCapacityRatio: Required value: "
            "must be specified when type is RequestedToCapacityRatio",
        ),
        (
            told("PodTopologySpread", defaultConstraints=[{"maxSkew": 1, "topologyKey": "zone"}]),
            '[profiles[0].pluginConfig[0].args.defaultingType: Invalid value: "System": when .defaultConstraints '
            "are not empty, profiles[0].pluginConfig[0].args.defaultConstraints[0].whenUnsatisfiable: "
            "Required value: can not be empty]",
        ),
        (
            told("DefaultPreemption", minCandidateNodesPercentage=0, minCandidateNodesAbsolute=-1),
            "profiles[0].pluginConfig[0].args.minCandidateNodesAbsolute: Invalid value: -1: "
            "not in valid range [0, inf)",
        ),
    ],
)
def test_refused(fields: Object, why: str) -> None:
    with pytest.raises(ConfigFileError) as error:
        parse_configuration(text(**fields))
    assert str(error.value) == why


async def test_each_profile_schedules_its_own_pods_in_its_own_way_and_name() -> None:
    """Of two nodes, one half full, the default takes the empty one, a profile that packs takes the fuller."""
    strategy = {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 1}]}
    packing = {
        "schedulerName": "packer",
        "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": strategy}}],
    }
    packing["plugins"] = {"score": {"disabled": [{"name": "NodeResourcesBalancedAllocation"}]}}
    clock = FakeClock()
    client = FakeClient(clock)
    recorders = {name: EventRecorder(client, name, clock=clock) for name in ("default-scheduler", "packer")}
    configuration = parse_configuration(text(profiles=[{"schedulerName": "default-scheduler"}, packing]))
    client.put(NODES, node("empty"))
    client.put(NODES, node("full"))
    client.put(PODS, pod("there", on="full", requests={"cpu": "2"}))
    scheduler = Scheduler(client, recorders, clock, configuration)
    await scheduler.start()
    spreading = client.put(PODS, pod("a", requests={"cpu": "1"}))
    packed = client.put(PODS, pod("b", requests={"cpu": "1"}, schedulerName="packer"))
    nobody = client.put(PODS, pod("c", schedulerName="other"))
    await settle()
    await clock.advance(0.1)
    where = [dig(client.look(PODS, made), "spec", "nodeName") for made in (spreading, packed, nobody)]
    assert where == ["empty", "full", None]
    assert {event["reportingComponent"] for event in client.of(EVENTS)} == {"default-scheduler", "packer"}
    await scheduler.stop()
    for recorder in recorders.values():
        await recorder.stop()


async def test_without_preemption_nobody_is_asked_away() -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    recorder = EventRecorder(client, "default-scheduler", clock=clock)
    configuration = parsed(plugins={"postFilter": {"disabled": [{"name": "DefaultPreemption"}]}})
    client.put(NODES, node("n1", cpu="1"))
    client.put(PODS, pod("low", on="n1", requests={"cpu": "1"}, priority=1))
    scheduler = Scheduler(client, {recorder.component: recorder}, clock, configuration)
    await scheduler.start()
    high = client.put(PODS, pod("high", requests={"cpu": "1"}, priority=9))
    await settle()
    condition = find_condition(client.look(PODS, high), "PodScheduled") or {}
    assert condition["message"] == "0/1 nodes are available: 1 Insufficient cpu."
    await scheduler.stop()
    await recorder.stop()


def test_every_plugin_and_every_argument_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
    for plugin in DEFAULT:
        assert plugin.name in page
        for argument in plugin.arguments:
            assert argument in page, f"{argument} of {plugin.name}"
