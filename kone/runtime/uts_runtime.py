"""A small OCI runtime in front of runc, by which the containers of a pod share their host name for real.

Docker's API joins containers to a sandbox's network and IPC namespaces, not to its UTS namespace. Where a host lets
kone register a runtime with its dockerd, the containers of pods are made by this one: a shell script that reads the
configuration which Docker wrote for runc, and has the container join the UTS namespace of the process whose IPC
namespace it joins. All else is runc's. What Docker writes is compact JSON, in which a quote within a string is escaped:
so the two patterns below match structure, never content.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kone.runtime.docker_host import listener

NAME: Final = "kone"  # as dockerd knows it
SCRIPT_NAME: Final = "kone-runc"
DAEMON_CONFIG: Final = Path("/etc/docker/daemon.json")

SCRIPT: Final = r"""#!/bin/sh
# Made by `kone runtime install`: runc, but who joins a process's IPC namespace joins its UTS namespace too.
command="" bundle="" expect=""
for word; do
  if [ -n "$expect" ]; then
    [ "$expect" = bundle ] && bundle=$word
    expect=""
    continue
  fi
  case $word in
    create | run) [ -n "$command" ] || command=$word ;;
    --bundle | -b) expect=bundle ;;
    --bundle=*) bundle=${word#--bundle=} ;;
    --root | --log | --log-format | --criu | --pid-file | --console-socket | --preserve-fds) expect=other ;;
  esac
done
config=${bundle:-.}/config.json
if [ -n "$command" ] && [ -f "$config" ]; then
  joined=$(sed -n 's|.*{"type":"ipc","path":"\(/proc/[0-9]*/ns\)/ipc"}.*|\1|p' "$config")
  if [ -n "$joined" ] && grep -q '{"type":"uts"}' "$config"; then
    sed -e "s|{\"type\":\"uts\"}|{\"type\":\"uts\",\"path\":\"$joined/uts\"}|" -e 's|"hostname":"[^"]*",||' \
      "$config" >"$config.kone" && mv "$config.kone" "$config" || exit 1
  fi
fi
exec @RUNC@ "$@"
"""


class RuntimeInstallError(Exception):
    """The runtime cannot be installed or removed; one line that says what to do."""


def install(bin_dir: Path, host: str, config: Path = DAEMON_CONFIG) -> Iterator[str]:
    """Write the script, register it with dockerd and have that read its configuration again. Yields what was done.

    Raises RuntimeInstallError.
    """
    runc = shutil.which("runc") or shutil.which("docker-runc")
    if runc is None:
        raise RuntimeInstallError("runc is not here: install it, or put it in the PATH")
    script = bin_dir / SCRIPT_NAME
    try:
        bin_dir.mkdir(parents=True, exist_ok=True)
        fresh = script.with_name(script.name + ".new")
        fresh.write_text(SCRIPT.replace("@RUNC@", runc))
        fresh.chmod(0o755)
        fresh.rename(script)
        yield f"{script} runs {runc}"
        settings = _read(config)
        runtimes = settings.setdefault("runtimes", {})
        if runtimes.get(NAME) != {"path": str(script)}:
            runtimes[NAME] = {"path": str(script)}
            _write(config, settings)
        yield f'runtime "{NAME}" is in {config}'
    except OSError as error:
        raise RuntimeInstallError(f"{error.filename}: {error.strerror}: run as root") from None
    yield _reload(host)


def remove(bin_dir: Path, host: str, config: Path = DAEMON_CONFIG) -> Iterator[str]:
    """The opposite. Containers that were made by it need its script for as long as they are there, so it stays where
    there are such."""
    try:
        settings = _read(config)
        if settings.get("runtimes", {}).pop(NAME, None) is not None:
            if not settings["runtimes"]:
                del settings["runtimes"]
            _write(config, settings)
            yield f'runtime "{NAME}" is no more in {config}'
            yield _reload(host)
        (bin_dir / SCRIPT_NAME).unlink(missing_ok=True)
        yield f"{bin_dir / SCRIPT_NAME} is removed"
    except OSError as error:
        raise RuntimeInstallError(f"{error.filename}: {error.strerror}: run as root") from None


def _read(config: Path) -> dict[str, Any]:
    try:
        found = json.loads(config.read_text() or "{}")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RuntimeInstallError(f"{config} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise RuntimeInstallError(f"{config} is no object")
    return found


def _write(config: Path, settings: dict[str, Any]) -> None:
    config.parent.mkdir(parents=True, exist_ok=True)
    fresh = config.with_name(config.name + ".new")
    fresh.write_text(json.dumps(settings, indent=2) + "\n")
    fresh.rename(config)


def _reload(host: str) -> str:
    """Have dockerd read its configuration; what it runs goes on. Says what is left to do where that cannot be done."""
    by_hand = "have dockerd read its configuration: systemctl reload docker"
    try:
        pid = listener(host)
        if not pid or Path(f"/proc/{pid}/comm").read_text().strip() != "dockerd":
            return by_hand
        os.kill(pid, signal.SIGHUP)
    except OSError:
        return by_hand
    return "dockerd reads its configuration again; kone uses the runtime from its next start on"
