"""`make replay`: play upstream's recorded conversations against a bare API; the counts of docs/replay.md only rise.

    python -m tests.replay [--update] [crd.json …]

The recordings and their player live beside the checkout, in ../shared/upstream (or $KONE_UPSTREAM). Without them there
is nothing to play and the command says so. `--update` writes the new counts to docs/replay.md where none is lower.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
UPSTREAM = Path(os.environ.get("KONE_UPSTREAM") or ROOT.parent / "shared" / "upstream")
RECORD = ROOT / "docs" / "replay.md"
READY_S = 30.0
_COUNT = re.compile(r"^(\S+\.json): (\d+) of (\d+) scenarios hold$", re.M)
_ROW = re.compile(r"^\| (\S+\.json) \| (\d+) \| (\d+) \|$", re.M)


@contextlib.contextmanager
def bare_api() -> Iterator[Path]:
    """A bare API server on a free port; gives its kubeconfig."""
    with tempfile.TemporaryDirectory(prefix="kone-replay-") as folder:
        parts = "controllers,scheduler,kubelet,proxy,dns"
        command = [BIN / "kone", "server", "--data-dir", folder, "--secure-port", "0", "--bind-address", "127.0.0.1"]
        with open(Path(folder) / "log", "w") as log:
            server = subprocess.Popen([*command, "--disable", parts], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line.startswith("kone is ready"):
                raise SystemExit(f"the server did not start: {(Path(folder) / 'log').read_text()[-2000:]}")
            yield Path(folder) / "admin.kubeconfig"
        finally:
            server.terminate()
            server.wait(READY_S)
            if server.stdout is not None:
                server.stdout.close()


def play(details: Path, files: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Scenarios held and played, by file, each on a server of its own; of these files alone, where some are named. What
    differed is written to `details`.

    A file of which fewer hold than docs/replay.md says is played once more: some recordings race (the player itself
    waits for caches), and a rule that is broken stays broken.
    """
    promised = recorded()
    found = {}
    with open(details, "w") as log:
        for corpus in sorted((UPSTREAM / "corpus").glob("*.json")):
            if files and corpus.name not in files:
                continue
            with bare_api() as kubeconfig:
                held, played = _play_file(kubeconfig, corpus, log)
                if held < promised.get(corpus.name, 0):
                    held = max(held, _play_file(kubeconfig, corpus, log)[0])
            found[corpus.name] = (held, played)
    return found


def _play_file(kubeconfig: Path, corpus: Path, log: TextIO) -> tuple[int, int]:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    began = time.monotonic()
    command = [UPSTREAM / "replay", kubeconfig, corpus]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    log.write(answer.stdout + answer.stderr)
    match = _COUNT.search(answer.stdout)
    if match is None:
        raise SystemExit(f"{corpus.name} was not played: {answer.stderr[-2000:]}")
    print(f"{match[1]}: {match[2]} of {match[3]} scenarios hold ({time.monotonic() - began:.0f} s)", flush=True)
    return int(match[2]), int(match[3])


def recorded() -> dict[str, int]:
    """The counts that docs/replay.md promises."""
    return {row[1]: int(row[2]) for row in _ROW.finditer(RECORD.read_text())} if RECORD.exists() else {}


def write(found: dict[str, tuple[int, int]]) -> None:
    rows = [f"| {name} | {held} | {played} |" for name, (held, played) in sorted(found.items())]
    held, played = (sum(counts[i] for counts in found.values()) for i in (0, 1))
    RECORD.write_text(
        "# Upstream's recorded conversations\n\n"
        "`make replay` plays the recordings of upstream's API server (v1.37.2) against kone's bare API and\n"
        "compares every answer. A scenario holds when each of its answers is upstream's. `.ci/run` fails when\n"
        "fewer hold than stand here; `python -m tests.replay --update` writes the counts anew.\n\n"
        f"{held} of {played} scenarios hold.\n\n"
        "| file | scenarios that hold | scenarios |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description="play upstream's conversations")
    parser.add_argument("files", nargs="*", metavar="FILE", help="of these files alone, e.g. crd.json (default: all)")
    parser.add_argument("--update", action="store_true", help="write the counts to docs/replay.md where none is lower")
    asked = parser.parse_args()
    if asked.update and asked.files:
        parser.error("--update is of all files")
    if not (UPSTREAM / "replay").exists():
        print(f"{UPSTREAM} is not here: nothing is played")
        return 0
    details = ROOT / ".run" / "replay.log"
    details.parent.mkdir(exist_ok=True)
    found = play(details, asked.files)
    before = recorded()
    fewer = {name: (found[name][0], n) for name, n in before.items() if name in found and found[name][0] < n}
    for name, (now, then) in fewer.items():
        print(f"{name}: {now} scenarios hold, docs/replay.md says {then}; see {details}")
    if fewer:
        return 1
    if asked.update:
        write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
