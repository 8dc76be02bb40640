"""The sandbox image, made here: a static program of some 200 bytes that holds a pod's namespaces and sleeps.

No registry and no compiler is needed: the ELF file is assembled below, and packed as an image archive that `docker
load` takes. The program ignores SIGCHLD, so that the kernel reaps what is orphaned in a shared process namespace, and
exits on SIGTERM and SIGINT; nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile

PAUSE_VERSION = "1"
PAUSE_IMAGE = f"kone/pause:{PAUSE_VERSION}"

_BASE = 0x400000
_HEADERS = 64 + 56  # ELF header and one program header
_SIG_IGN = 1
_SA_NOCLDWAIT = 0x2
_SA_RESTORER = 0x04000000
_SIGINT, _SIGTERM, _SIGCHLD = 2, 15, 17


def _sigactions(handler: int) -> bytes:
    """Two struct sigaction of the kernel (handler, flags, restorer, mask): ignore children; leave."""
    return struct.pack("<4Q", _SIG_IGN, _SA_NOCLDWAIT, 0, 0) + struct.pack("<4Q", handler, _SA_RESTORER, handler, 0)


def _amd64() -> bytes:
    def sigaction(signal: int, at: int, target: int) -> bytes:
        # mov edi, signal; lea rsi, [rip + target]; xor edx, edx; mov r10d, 8; mov eax, 13; syscall
        offset = target - (at + 12)
        return (
            b"\xbf" + struct.pack("<I", signal) + b"\x48\x8d\x35" + struct.pack("<i", offset) + b"\x31\xd2"
            b"\x41\xba\x08\x00\x00\x00" + b"\xb8\x0d\x00\x00\x00" + b"\x0f\x05"
        )

    step = len(sigaction(0, 0, 0))
    sleep = b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"  # mov eax, 34 (pause); syscall; jmp back
    leave = b"\x31\xff\xb8\x3c\x00\x00\x00\x0f\x05"  # xor edi, edi; mov eax, 60 (exit); syscall
    handler = 3 * step + len(sleep)
    data = handler + len(leave)
    ignore, die = data, data + 32
    code = b"".join(
        sigaction(signal, i * step, target)
        for i, (signal, target) in enumerate([(_SIGCHLD, ignore), (_SIGTERM, die), (_SIGINT, die)])
    )
    return code + sleep + leave + _sigactions(_BASE + _HEADERS + handler)


def _arm64() -> bytes:
    def movz(register: int, value: int) -> int:
        return 0xD2800000 | value << 5 | register

    def adr(register: int, offset: int) -> int:
        return 0x10000000 | (offset & 3) << 29 | ((offset >> 2) & 0x7FFFF) << 5 | register

    svc = 0xD4000001

    def sigaction(signal: int, at: int, target: int) -> list[int]:
        # x0 = signal; x1 = &action; x2 = 0; x3 = 8; x8 = 134 (rt_sigaction)
        return [movz(0, signal), adr(1, target - (at + 4)), movz(2, 0), movz(3, 8), movz(8, 134), svc]

    step = 4 * len(sigaction(0, 0, 0))
    # ppoll(0, 0, 0, 0, 8) for ever; b back to the first instruction
    sleep = [movz(0, 0), movz(1, 0), movz(2, 0), movz(3, 0), movz(8, 73), svc, 0x14000000 | (-6 & 0x3FFFFFF)]
    leave = [movz(0, 0), movz(8, 93), svc]
    handler = 3 * step + 4 * len(sleep)
    data = handler + 4 * len(leave)
    ignore, die = data, data + 32
    words: list[int] = []
    for signal, target in [(_SIGCHLD, ignore), (_SIGTERM, die), (_SIGINT, die)]:
        words += sigaction(signal, 4 * len(words), target)
    words += sleep + leave
    return struct.pack(f"<{len(words)}I", *words) + _sigactions(_BASE + _HEADERS + handler)


_MACHINES = {"amd64": (62, _amd64), "arm64": (183, _arm64)}


def pause_program(arch: str) -> bytes:
    """The ELF executable for "amd64" or "arm64". Raises ValueError for others."""
    if arch not in _MACHINES:
        raise ValueError(f"no sandbox program for architecture {arch!r}; there is one for {', '.join(_MACHINES)}")
    machine, assemble = _MACHINES[arch]
    code = assemble()
    size = _HEADERS + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code


def pause_image(arch: str) -> bytes:
    """An image archive (tar) holding PAUSE_IMAGE for the architecture; the same bytes, and so the same id, every
    time.
    """
    layer = _tar({"pause": (pause_program(arch), 0o755)})
    config = {
        "architecture": arch,
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/pause"], "Labels": {"kone.image": "pause"}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "kone"}],
    }
    encoded = json.dumps(config, sort_keys=True).encode()
    name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]).encode()
    return _tar({"manifest.json": (manifest, 0o644), name: (encoded, 0o644), "layer.tar": (layer, 0o644)})


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()
