"""Credentials from programs on this host: configured, asked, and remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.kinds import SERVICEACCOUNTS
from kone.apimachinery.objects import Object
from kone.runtime.credential_provider_config import parse
from kone.runtime.credential_providers import CredentialProviders, read_providers
from kone.runtime.registry_keyring import Credential, Source
from tests.fakes import FakeClient
from tests.runtime.kubelet_world import make_pod

V1 = "credentialprovider.kubelet.k8s.io/v1"
TOKEN = {
    "serviceAccountTokenAudience": "registry",
    "requireServiceAccount": True,
    "cacheType": "ServiceAccount",
}


def config(**provider: Any) -> str:
    whole = {
        "name": "giver",
        "apiVersion": V1,
        "matchImages": ["*.example.com", "quay.io/team"],
        "defaultCacheDuration": "1h",
        **provider,
    }
    content = {key: value for key, value in whole.items() if value is not None}
    return json.dumps(
        {"kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1", "providers": [content]}
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "a/b"}, "providers.name: Invalid value: \"a/b\": provider name cannot contain '/'"),
        ({"name": ".."}, "providers.name: Invalid value: \"..\": provider name cannot be '..'"),
        ({"matchImages": []}, "providers.matchImages: Required value: at least 1 item in matchImages is required"),
        ({"defaultCacheDuration": None}, "providers.defaultCacheDuration: Required value"),
        (
            {"defaultCacheDuration": "-1s"},
            'providers.defaultCacheDuration: Invalid value: "-1s": must be greater than or equal to 0',
        ),
        ({"apiVersion": None}, "providers.apiVersion: Required value"),
        (
            {"apiVersion": "v1"},
            'providers.apiVersion: Unsupported value: "v1": supported values: '
            '"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1alpha1", '
            '"credentialprovider.kubelet.k8s.io/v1beta1"',
        ),
        (
            {"tokenAttributes": {**TOKEN, "serviceAccountTokenAudience": ""}},
            "providers.tokenAttributes.serviceAccountTokenAudience: Required value",
        ),
        (
            {
                "tokenAttributes": {
                    **TOKEN,
                    "requireServiceAccount": False,
                    "requiredServiceAccountAnnotationKeys": ["a"],
                }
            },
            "providers.tokenAttributes.requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot "
            "be false when requiredServiceAccountAnnotationKeys is set",
        ),
        (
            {"tokenAttributes": {**TOKEN, "cacheType": "Pod"}},
            'providers.tokenAttributes.cacheType: Unsupported value: "Pod": supported values: "ServiceAccount", '
            '"Token"',
        ),
    ],
)
def test_a_configuration_that_cannot_be_says_why(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigFileError) as error:
        parse({"f": config(**change)})
    assert str(error.value) == f"failed to validate credential provider config: {text}"


def test_an_unknown_field_and_a_name_twice_are_refused() -> None:
    with pytest.raises(ConfigFileError) as error:
        parse({"f": config(matchImage=["x"])})
    assert "unknown field" in str(error.value)
    with pytest.raises(ConfigFileError) as error:
        parse({"a": config(), "b": config()})
    assert str(error.value) == 'duplicate provider name "giver" found in configuration file(s)'


class Host:
    """A directory of programs; the one named giver answers what `answer` says, and writes down what it is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bin_dir = path / "bin"
        self.bin_dir.mkdir()
        program = self.bin_dir / "giver"
        program.write_text(
            f'#!/bin/sh\n( cat; echo " $* $WHO" ) >> {path}/asked\ncat {path}/answer\n'
            f'test ! -e {path}/fails || {{ echo "no luck" >&2; exit 3; }}\n'
        )
        program.chmod(0o755)
        self.answer()
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)

    def answer(self, **said: Any) -> None:
        whole = {
            "kind": "CredentialProviderResponse",
            "apiVersion": V1,
            "cacheKeyType": "Image",
            "auth": {"*.example.com": {"username": "u", "password": "p"}},
            **said,
        }
        (self.path / "answer").write_text(json.dumps(whole))

    @property
    def asked(self) -> list[str]:
        path = self.path / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def providers(self, **provider: Any) -> CredentialProviders:
        (self.path / "config.json").write_text(config(**provider))
        found = read_providers(self.path / "config.json", self.bin_dir)
        return CredentialProviders(found, self.bin_dir, self.client, self.clock)

    def account(self, name: str, **annotations: str) -> Object:
        meta = {"name": name, "namespace": "default", "annotations": annotations}
        return self.client.put(SERVICEACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


POD = make_pod("p")


def named(found: list[Credential]) -> list[str]:
    return [credential.auth.username for credential in found]


async def test_a_program_is_asked_for_images_that_match_with_its_arguments_and_environment(host: Host) -> None:
    providers = host.providers(args=["get", "it"], env=[{"name": "WHO", "value": "me"}])
    assert named(await providers.lookup("a.example.com/app", POD)) == ["u"]
    assert await providers.lookup("gcr.io/app", POD) == []
    (line,) = host.asked
    request, _, rest = line.rpartition("}")
    assert json.loads(request + "}") == {
        "kind": "CredentialProviderRequest",
        "apiVersion": V1,
        "image": "a.example.com/app",
    }
    assert rest == " get it me"


@pytest.mark.parametrize(
    ("kind", "times"),
    [("Image", 3), ("Registry", 2), ("Global", 1)],
)
async def test_an_answer_is_remembered_for_the_image_its_registry_or_all(host: Host, kind: str, times: int) -> None:
    host.answer(cacheKeyType=kind)
    providers = host.providers()
    for image in ("a.example.com/one", "a.example.com/one", "a.example.com/two", "b.example.com/one"):
        assert named(await providers.lookup(image, POD)) == ["u"]
    assert len(host.asked) == times


@pytest.mark.parametrize(
    ("said", "default", "lasts_s"),
    [({}, "1h", 3600), ({"cacheDuration": "2m"}, "1h", 120), ({"cacheDuration": "0s"}, "1h", 0), ({}, "0s", 0)],
)
async def test_it_is_remembered_as_long_as_it_says_or_as_is_configured(
    host: Host, said: dict[str, str], default: str, lasts_s: int
) -> None:
    host.answer(**said)
    providers = host.providers(defaultCacheDuration=default)
    await providers.lookup("a.example.com/app", POD)
    if lasts_s:
        await host.clock.advance(lasts_s - 1)
        await providers.lookup("a.example.com/app", POD)
        assert len(host.asked) == 1
        await host.clock.advance(2)
    await providers.lookup("a.example.com/app", POD)
    assert len(host.asked) == 2


@pytest.mark.parametrize(
    "said",
    [{"cacheKeyType": "Pod"}, {"apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1"}, {"kind": "Pod"}],
)
async def test_an_answer_that_cannot_be_is_none_and_shows_no_password(
    host: Host, said: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    host.answer(auth={"*.example.com": {"username": "u", "password": "s3cret"}}, **said)
    assert await host.providers().lookup("a.example.com/app", POD) == []
    assert "no credentials for image a.example.com/app" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_program_that_fails_says_why_in_the_log(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    (host.path / "fails").touch()
    assert await host.providers().lookup("a.example.com/app", POD) == []
    assert "error execing credential provider plugin giver for image a.example.com/app: exit status 3: no luck" in (
        caplog.text
    )


async def test_a_program_may_be_shown_a_token_of_the_pods_account_and_its_answer_is_that_accounts(host: Host) -> None:
    account = host.account("robot", role="puller", other="x")
    attributes = {**TOKEN, "requiredServiceAccountAnnotationKeys": ["role"]}
    providers = host.providers(tokenAttributes=attributes)
    pod = make_pod("p", serviceAccountName="robot")
    (found,) = await providers.lookup("a.example.com/app", pod)
    assert found.source == Source("ServiceAccount", account["metadata"]["uid"], "default", "robot")
    request = json.loads(host.asked[0].rpartition("}")[0] + "}")
    assert request["serviceAccountToken"]
    assert request["serviceAccountAnnotations"] == {"role": "puller"}
    host.account("other", role="puller")
    await providers.lookup("a.example.com/app", pod)
    assert len(host.asked) == 1
    await providers.lookup("a.example.com/app", make_pod("q", serviceAccountName="other"))
    assert len(host.asked) == 2


async def test_an_account_without_the_annotation_is_not_asked_for(host: Host) -> None:
    host.account("robot")
    providers = host.providers(tokenAttributes={**TOKEN, "requiredServiceAccountAnnotationKeys": ["role"]})
    assert await providers.lookup("a.example.com/app", make_pod("p", serviceAccountName="robot")) == []
    assert await providers.lookup("a.example.com/app", make_pod("p")) == []
    assert host.asked == []


def test_programs_that_are_not_there_are_refused_at_the_start(host: Host) -> None:
    (host.path / "config.json").write_text(config(name="taker"))
    with pytest.raises(ConfigFileError) as error:
        read_providers(host.path / "config.json", host.bin_dir)
    assert str(error.value) == f"plugin binary executable {host.bin_dir}/taker did not exist"
    with pytest.raises(ConfigFileError) as error:
        read_providers(host.path / "config.json", host.path / "nowhere")
    assert str(error.value) == f"plugin binary directory {host.path}/nowhere did not exist"
    with pytest.raises(ConfigFileError) as error:
        read_providers(host.bin_dir, host.bin_dir)
    assert str(error.value) == f"no configuration files found in directory {host.bin_dir}"
