"""DenyServiceExternalIPs: nobody takes traffic to an address by naming it in a Service, save those who already do."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Plugin
from kone.apimachinery.objects import dig


class DenyServiceExternalIPs(Plugin):
    name = "DenyServiceExternalIPs"
    resources = frozenset({("", "services")})

    async def validate(self, a: Attributes) -> None:
        new, old = (set(dig(obj, "spec", "externalIPs", default=())) for obj in (a.obj, a.old))
        if not new <= old:
            raise a.refuse("Use of external IPs is denied by admission control")
