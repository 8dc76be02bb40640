"""AlwaysAdmit and AlwaysDeny: upstream's deprecated plugins that say yes to everything, and no."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Plugin


class AlwaysAdmit(Plugin):
    name = "AlwaysAdmit"


class AlwaysDeny(Plugin):
    name = "AlwaysDeny"
    operations = frozenset({"CREATE", "UPDATE", "DELETE", "CONNECT"})
    subresources = None

    async def mutate(self, a: Attributes) -> None:
        raise a.refuse("admission control is denying all modifications")

    async def validate(self, a: Attributes) -> None:
        raise a.refuse("admission control is denying all modifications")
