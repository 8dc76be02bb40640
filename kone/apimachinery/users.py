"""Who makes a request: the result of authentication, which authorization, admission and strategies read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SYSTEM_MASTERS = "system:masters"
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
ANONYMOUS = "system:anonymous"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class User:
    """user.Info of k8s.io/apiserver."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def service_account_user(
    namespace: str, name: str, uid: str = "", extra: Mapping[str, tuple[str, ...]] | None = None
) -> User:
    """The user that a service account's token stands for."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
    return User(f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}", uid, groups, extra or {})


NODES_GROUP = "system:nodes"
NODE_USER_PREFIX = "system:node:"


def node_identity(user: User) -> str | None:
    """The node that a user is: "" for a member of system:nodes without a node's name, None for anybody else."""
    if NODES_GROUP not in user.groups:
        return None
    return user.name[len(NODE_USER_PREFIX) :] if user.name.startswith(NODE_USER_PREFIX) else ""
