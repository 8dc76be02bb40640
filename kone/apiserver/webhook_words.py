"""Why another program could not be asked, as Go's HTTP client and client-go word it."""

from __future__ import annotations

import aiohttp
from yarl import URL

from kone.apimachinery.errors import go_quote


def connection_words(error: BaseException, url: URL, at: str) -> str:
    """What went wrong on the way to `url`; `at` is the address that was dialled."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"tls: failed to verify certificate: x509: {_certificate_words(error.certificate_error, url)}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {url.host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorError):
        text = (error.os_error.strerror or str(error.os_error)).lower()
        if isinstance(error.os_error, ConnectionRefusedError):
            text = "connection refused"
        return f"dial tcp {at}: connect: {text}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    return str(error) or type(error).__name__


def answer_words(status: int, body: bytes) -> str:
    """What an answer that is no success means."""
    if status == 404:
        return "the server could not find the requested resource"
    shown = body[:2048].decode(errors="replace").strip()
    if status >= 500:
        return f"an error on the server ({go_quote(shown or 'unknown')}) has prevented the request from succeeding"
    return f"the server responded with the status code {status} but did not return more details"


def _certificate_words(error: BaseException, url: URL) -> str:
    text = str(error)
    if "has expired" in text:
        return "certificate has expired or is not yet valid"
    if "Hostname mismatch" in text or "IP address mismatch" in text:
        return f"certificate is not valid for any names, but wanted to match {url.host}"
    return "certificate signed by unknown authority"
