"""ImagePolicyWebhook asks another program about images."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from kone.admission import image_policy_webhook
from kone.admission.image_policy_webhook import ImagePolicy, ImagePolicyWebhook
from kone.admission.webhooks import CallFailed
from kone.aio.clock import FakeClock
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.objects import Object
from tests.admission.support import admit, pod, refusal, write


class Reviewer:
    """Answers, or raises, one after the other; remembers what it was asked."""

    def __init__(self, *answers: Object | CallFailed) -> None:
        self.answers, self.asked = list(answers), list[Object]()

    async def post(self, body: Object) -> Any:
        self.asked.append(body)
        answer = self.answers.pop(0)
        if isinstance(answer, CallFailed):
            raise answer
        return {**body, "status": answer}


POLICY = ImagePolicy("/kubeconfig", allow_ttl_s=60.0, deny_ttl_s=10.0)


async def test_images_are_asked_about_and_the_answer_is_kept_for_a_while() -> None:
    clock, reviewer = FakeClock(), Reviewer({"allowed": True, "auditAnnotations": {"by": "me"}}, {"allowed": False})
    plugin = ImagePolicyWebhook(POLICY, reviewer, clock)
    p = pod(annotations={"my.image-policy.k8s.io/ticket": "1", "other": "2"})
    a = await admit(plugin, write("CREATE", p))
    assert a.annotations == {"imagepolicywebhook.image-policy.k8s.io/by": "me"}
    assert reviewer.asked[0]["spec"] == {
        "containers": [{"image": "i"}],
        "annotations": {"my.image-policy.k8s.io/ticket": "1"},
        "namespace": "ns",
    }
    await admit(plugin, write("CREATE", p))
    assert len(reviewer.asked) == 1
    await clock.advance(61)
    error = await refusal(plugin, write("CREATE", p))
    assert str(error) == 'pods "p" is forbidden: one or more images rejected by webhook backend'


async def test_a_refusal_of_images_says_why() -> None:
    plugin = ImagePolicyWebhook(POLICY, Reviewer({"allowed": False, "reason": "too old"}), FakeClock())
    error = await refusal(plugin, write("CREATE", pod()))
    assert str(error) == 'pods "p" is forbidden: image policy webhook backend denied one or more images: too old'


async def test_where_images_cannot_be_asked_about_the_default_holds() -> None:
    failed = CallFailed("connection refused")
    error = await refusal(ImagePolicyWebhook(POLICY, Reviewer(failed), FakeClock()), write("CREATE", pod()))
    assert str(error) == 'pods "p" is forbidden: connection refused'
    open_ = dataclasses.replace(POLICY, default_allow=True)
    a = await admit(ImagePolicyWebhook(open_, Reviewer(failed), FakeClock()), write("CREATE", pod()))
    assert a.annotations == {"imagepolicywebhook.image-policy.k8s.io/failed-open": "true"}
    assert a.object["metadata"]["annotations"] == {"alpha.image-policy.k8s.io/failed-open": "true"}


async def test_what_may_be_better_the_next_time_is_asked_again() -> None:
    busy = CallFailed("too many", is_transient=True)
    reviewer = Reviewer(busy, {"allowed": True})
    await admit(
        ImagePolicyWebhook(dataclasses.replace(POLICY, backoff_s=0.0), reviewer, FakeClock()), write("CREATE", pod())
    )
    assert len(reviewer.asked) == 2


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ImagePolicy("", 300.0, 30.0, 0.5)),
        (
            {"allowTTL": 60, "denyTTL": -1, "retryBackoff": 200, "defaultAllow": True},
            ImagePolicy("", 60.0, 0.0, 0.2, True),
        ),
    ],
)
def test_an_image_policys_durations(given: Object, found: ImagePolicy) -> None:
    assert image_policy_webhook.parse(json.dumps({"imagePolicy": given})) == found


def test_an_image_policy_needs_a_configuration_within_bounds() -> None:
    with pytest.raises(ConfigFileError, match="no config specified"):
        image_policy_webhook.parse(None)
    with pytest.raises(ConfigFileError, match="allowTTL: valid value is between 1s and 1800s, got 3600s"):
        image_policy_webhook.parse('{"imagePolicy": {"allowTTL": 3600}}')
