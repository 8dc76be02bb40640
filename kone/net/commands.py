"""Running the programs that write the kernel's rules: iptables and nft, text in and text out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

TIMEOUT_S = 60.0


class CommandError(Exception):
    """A program could not be run, did not end, or refused: then `said` is what it wrote to standard error."""

    def __init__(self, text: str, said: str = "") -> None:
        super().__init__(text)
        self.said = said


def run(command: Sequence[str], text: str | None, started: Callable[[int], None], package: str) -> str:
    """The program's output; blocks. `started` is told its process id at once, so that its changes are known as kone's
    own; `package` is what to install where it is missing. Raises CommandError."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise CommandError(f"{command[0]} cannot be run ({error.strerror}): install {package}") from error
    started(process.pid)
    try:
        out, said = process.communicate(text, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise CommandError(f"{command[0]} did not end within {TIMEOUT_S:.0f} s") from None
    if process.returncode != 0:
        raise CommandError(f"{' '.join(command)}: {' '.join(said.split())[:500]}", said)
    return out
