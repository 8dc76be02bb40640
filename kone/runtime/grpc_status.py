"""gRPC's status codes (grpc/doc/statuscodes.md), and the error that a call ends with."""

from __future__ import annotations

from typing import Final

CODES: Final = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)
"""Their names, by number, as Go prints them."""

CANCELED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 1, 2, 3, 4, 5
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE = 8, 9, 10, 11
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 12, 13, 14


def code_name(code: int) -> str:
    return CODES[code] if 0 <= code < len(CODES) else f"Code({code})"


class RpcError(Exception):
    """A call ended with a status that is not OK. `str(error)` is what Go's client prints."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"rpc error: code = {code_name(code)} desc = {message}")
        self.code, self.message = code, message
