"""Who may use an image that is here already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.config_files import ConfigFileError
from kone.runtime.pull_records import Policy, PullRecords, Verification
from kone.runtime.registry_keyring import Credential, Source
from kone.runtime.runtime import Image, RegistryAuth

NAME, ID = "quay.io/team/app:1", "sha256:a"


def of_secret(name: str = "s", password: str = "p", uid: str = "u") -> Credential:
    return Credential(RegistryAuth("me", password), Source("Secret", uid, "default", name))


def of_account(name: str) -> Credential:
    return Credential(RegistryAuth("robot", "t"), Source("ServiceAccount", f"uid-{name}", "default", name))


NODES_OWN = Credential(RegistryAuth("host", "h"))


def records(path: Path, policy: Policy | None = None, *images: Image) -> PullRecords:
    found = PullRecords(path, FakeClock(), policy or Policy())
    found.load(images)
    return found


def pulled(found: PullRecords, credential: Credential | None, name: str = NAME) -> None:
    found.begin(name)
    found.pulled(name, ID, credential)


def test_an_image_that_the_kubelet_did_not_pull_is_free(tmp_path: Path) -> None:
    assert records(tmp_path).is_free(NAME, ID)


@pytest.mark.parametrize("credential", [None, NODES_OWN], ids=["without credentials", "by the host's own"])
def test_what_was_pulled_for_everybody_is_free(tmp_path: Path, credential: Credential | None) -> None:
    found = records(tmp_path)
    pulled(found, credential)
    assert found.is_free(NAME, ID)


@pytest.mark.parametrize(
    ("shown", "must_pull"),
    [
        ([], True),
        ([NODES_OWN], True),
        ([of_secret()], False),
        ([of_secret("other", "p", "u2")], False),
        ([of_secret("s", "rotated")], False),
        ([of_secret("other", "q", "u2")], True),
        ([of_account("a")], True),
    ],
    ids=[
        "nothing",
        "the host's own",
        "the same secret",
        "another secret of the same content",
        "the same secret of another content",
        "another secret",
        "an account",
    ],
)
def test_what_a_secret_has_pulled_is_for_those_who_have_it(
    tmp_path: Path, shown: list[Credential], must_pull: bool
) -> None:
    found = records(tmp_path)
    pulled(found, of_secret())
    assert not found.is_free(NAME, ID)
    assert found.must_pull(NAME, ID, shown) is must_pull


def test_what_an_account_has_pulled_is_for_that_account(tmp_path: Path) -> None:
    found = records(tmp_path)
    pulled(found, of_account("a"))
    assert not found.must_pull(NAME, ID, [of_account("a")])
    assert found.must_pull(NAME, ID, [of_account("b")])
    pulled(found, of_account("b"))
    assert not found.must_pull(NAME, ID, [of_account("b")])


def test_a_tag_is_no_other_image_and_another_name_of_the_same_image_is(tmp_path: Path) -> None:
    found = records(tmp_path)
    pulled(found, of_secret())
    assert not found.must_pull("quay.io/team/app:2", ID, [of_secret()])
    assert found.must_pull("quay.io/other/app:1", ID, [of_secret()])


def test_secrets_that_were_let_in_by_their_content_are_remembered(tmp_path: Path) -> None:
    found = records(tmp_path)
    pulled(found, of_secret())
    assert not found.must_pull(NAME, ID, [of_secret("other", "p", "u2")])
    assert not found.must_pull(NAME, ID, [of_secret("other", "changed", "u2")])


def test_records_outlive_the_kubelet_in_upstreams_form(tmp_path: Path) -> None:
    pulled(records(tmp_path), of_secret())
    assert records(tmp_path).must_pull(NAME, ID, [])
    (path,) = (tmp_path / "image_manager" / "pulled").iterdir()
    record = json.loads(path.read_text())
    assert (record["kind"], record["apiVersion"]) == ("ImagePulledRecord", "kubelet.config.k8s.io/v1beta1")
    assert record["imageRef"] == ID
    assert record["credentialMapping"]["quay.io/team/app"]["kubernetesSecrets"][0]["name"] == "s"
    assert not list((tmp_path / "image_manager" / "pulling").iterdir())


def test_an_image_whose_pull_was_cut_off_is_for_nobody_without_asking_the_registry(tmp_path: Path) -> None:
    records(tmp_path).begin(NAME)
    after = records(tmp_path, None, Image(ID, tags=(NAME,)))
    assert not after.is_free(NAME, ID)
    assert after.must_pull(NAME, ID, [of_secret()])


def test_a_failed_pull_leaves_nothing(tmp_path: Path) -> None:
    found = records(tmp_path)
    found.begin(NAME)
    assert not found.is_free(NAME, ID)
    found.failed(NAME)
    assert found.is_free(NAME, ID)
    assert records(tmp_path).is_free(NAME, ID)


def test_an_image_that_is_gone_is_forgotten_unless_it_came_meanwhile(tmp_path: Path) -> None:
    found = records(tmp_path)
    now = FakeClock().now()
    pulled(found, of_secret())
    found.keep_only([], now)
    assert not found.is_free(NAME, ID)
    found.keep_only([], now + 1)
    assert found.is_free(NAME, ID)
    assert records(tmp_path).is_free(NAME, ID)


@pytest.mark.parametrize(
    ("verification", "here_before", "by_us"),
    [
        (Verification.NEVER, False, False),
        (Verification.NEVER_PRELOADED, False, True),
        (Verification.ALWAYS, True, True),
        (Verification.NEVER_ALLOWLISTED, True, True),
    ],
)
def test_which_images_are_verified_is_the_policys(
    tmp_path: Path, verification: Verification, here_before: bool, by_us: bool
) -> None:
    found = records(tmp_path, Policy(verification))
    assert found.is_free(NAME, ID) is not here_before
    pulled(found, of_secret())
    assert found.is_free(NAME, ID) is not by_us


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("quay.io/team/app:1", True),
        ("quay.io/team/app@sha256:" + "a" * 64, True),
        ("quay.io/team/app2", False),
        ("gcr.io/any/thing:3", True),
        ("gcr.io.evil/thing", False),
    ],
)
def test_an_allowlist_holds_names_and_beginnings_of_names(tmp_path: Path, name: str, free: bool) -> None:
    policy = Policy(Verification.NEVER_ALLOWLISTED, ["quay.io/team/app", "gcr.io/*"])
    assert records(tmp_path, policy).is_free(name, ID) is free


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (" quay.io/a", "leading/trailing spaces are not allowed:  quay.io/a"),
        ("", "the supplied pattern is too short: "),
        ("/*", "at least registry hostname is required"),
        ("*.io/a", "not a valid wildcard pattern, only patterns ending with '/*' are allowed: *.io/a"),
        ("quay.io/a:1", "neither tag nor digest is accepted in an image reference: quay.io/a:1"),
    ],
)
def test_an_allowlist_that_cannot_be_is_refused(pattern: str, text: str) -> None:
    with pytest.raises(ConfigFileError) as error:
        Policy(Verification.NEVER_ALLOWLISTED, [pattern])
    assert str(error.value) == text
