"""TLS Secrets as Ingresses need them: a chain and its key that belong together, or why there is none.

One certificate that Caddy does not take would make it refuse the whole configuration: so each is tried before.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import ssl
from collections.abc import Iterator

from kone.apimachinery.objects import Key, Object
from kone.net.ingress.rules import Certificate, Problem

CHAIN, KEY = "tls.crt", "tls.key"


def certificate_in(name: Key, secret: Object | None) -> Certificate | Problem:
    """What a Secret of type kubernetes.io/tls holds."""
    if secret is None:
        return Problem("SecretNotFound", f"Secret {name} does not exist")
    data = secret.get("data") or {}
    for entry in (CHAIN, KEY):
        if not data.get(entry):
            return Problem("InvalidSecret", f"Secret {name} has no {entry}")
    try:
        chain, key = (base64.b64decode(data[entry]).decode() for entry in (CHAIN, KEY))
    except (binascii.Error, ValueError):
        return Problem("InvalidSecret", f"Secret {name} is not PEM")
    if why := _wrong(chain, key):
        return Problem("InvalidSecret", f"Secret {name} holds no certificate with its key: {why}")
    return Certificate(chain, key)


def _wrong(chain: str, key: str) -> str:
    """Why these two are no pair; "" where they are."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _in_memory(chain) as chain_path, _in_memory(key) as key_path:
        try:
            context.load_cert_chain(chain_path, key_path, password=lambda: "")
        except (ssl.SSLError, OSError) as error:
            return " ".join(str(error).split())
    return ""


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A file that is on no disk; OpenSSL is only given paths."""
    fd = os.memfd_create("kone-ingress", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
