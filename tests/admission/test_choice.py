"""Which admission plugins are on, and how they are configured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kone.admission import event_rate_limit, pod_node_selector
from kone.admission.chain import Doors, default_chain
from kone.admission.choice import ORDER, choose
from kone.admission.configuration import parse_configurations
from kone.admission.event_rate_limit import Limit
from kone.admission.webhooks import parse_kubeconfig_file
from kone.aio.clock import FakeClock
from kone.apimachinery.config_files import ConfigFileError
from kone.apiserver.webhook_client import WebhookClient
from kone.auth import x509_checks
from kone.auth.authorizer import Authorizer
from kone.registry.registry import builtin
from tests.memory_caches import MemoryCaches


@pytest.fixture
def caches() -> MemoryCaches:
    return MemoryCaches()


def test_what_is_enabled_and_disabled_takes_its_place_in_the_order() -> None:
    found = choose(["EventRateLimit", "AlwaysPullImages"], ["LimitRanger"])
    assert found == tuple(
        name
        for name, is_on in ORDER.items()
        if (is_on and name != "LimitRanger") or name in ("AlwaysPullImages", "EventRateLimit")
    )


@pytest.mark.parametrize(
    ("enable", "disable", "text"),
    [
        (["Nonsense"], [], 'enable-admission-plugins plugin "Nonsense" is unknown'),
        ([], ["Nonsense"], 'disable-admission-plugins plugin "Nonsense" is unknown'),
        ([], ["RoleEscalation"], 'disable-admission-plugins plugin "RoleEscalation" is unknown'),
        (
            ["LimitRanger", "AlwaysAdmit"],
            ["AlwaysAdmit", "LimitRanger"],
            "[AlwaysAdmit LimitRanger] in enable-admission-plugins and disable-admission-plugins overlapped",
        ),
    ],
)
def test_a_wrong_choice_is_told(enable: list[str], disable: list[str], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        choose(enable, disable)
    assert str(caught.value) == text


def test_a_file_configures_plugins_within_it_and_by_path(tmp_path: Path, caches: MemoryCaches) -> None:
    (tmp_path / "selectors.yaml").write_text("podNodeSelectorPluginConfig: {ns: disk=ssd}")
    text = """
        apiVersion: apiserver.config.k8s.io/v1
        kind: AdmissionConfiguration
        plugins:
        - {name: PodNodeSelector, path: selectors.yaml}
        - {name: EventRateLimit, configuration: {apiVersion: eventratelimit.admission.k8s.io/v1alpha1,
           kind: Configuration, limits: [{type: Server, qps: 1, burst: 2}]}}
    """
    found = parse_configurations(text, tmp_path)
    assert pod_node_selector.parse(found["PodNodeSelector"]) == {"ns": "disk=ssd"}
    assert event_rate_limit.parse(found["EventRateLimit"]) == (Limit("Server", 1, 2),)


def test_a_file_of_the_older_form_configures_what_had_one(tmp_path: Path) -> None:
    found = parse_configurations("podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: a=b}", tmp_path)
    assert pod_node_selector.parse(found["PodNodeSelector"]) == {"clusterDefaultNodeSelector": "a=b"}
    assert set(found) == {"PodNodeSelector", "ImagePolicyWebhook"}


def test_what_is_wrong_with_a_configuration_names_the_plugin(caches: MemoryCaches) -> None:
    with pytest.raises(ValueError) as caught:
        default_chain(
            caches,
            FakeClock(),
            Authorizer(caches, []),
            names=["EventRateLimit"],
            configurations={
                "EventRateLimit": '{"apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "kind": "Configuration"}'
            },
        )
    assert str(caught.value) == (
        'couldn\'t init admission plugin "EventRateLimit": limits: Invalid value: null: must not be empty'
    )


async def test_every_plugin_can_be_chosen(caches: MemoryCaches, tmp_path: Path) -> None:
    async def make(name: str) -> None:
        raise AssertionError("nothing is created")

    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            }
        )
    )
    text = json.dumps({"imagePolicy": {"kubeConfigFile": str(kubeconfig)}})
    doors = Doors(builtin(x509_checks), WebhookClient(caches), make)
    chain = default_chain(
        caches,
        FakeClock(),
        Authorizer(caches, []),
        doors,
        names=ORDER,
        configurations={"ImagePolicyWebhook": text},
    )
    assert [plugin.name for plugin in chain.plugins] == [name for name in ORDER if name != "PodGroupProtection"]


def test_a_kubeconfig_of_webhooks_is_named_by_an_absolute_path() -> None:
    head = "apiVersion: apiserver.config.k8s.io/v1\nkind: WebhookAdmissionConfiguration\nkubeConfigFile: "
    assert parse_kubeconfig_file(head + "/etc/users") == "/etc/users"
    with pytest.raises(ConfigFileError) as caught:
        parse_kubeconfig_file(head + "users")
    assert str(caught.value) == 'kubeConfigFile: Invalid value: "users": must be an absolute file path'
