"""Upstream's own validation as a process: built from the Go module k8s.io/kubernetes, asked line by line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

VERSION = "v1.37.2"
STAGING = "v0.37.2"
"""What the modules of k8s.io/kubernetes' staging folder are published as."""
BUILD = Path(os.environ.get("KONE_ORACLE", "/tmp/kone-oracle"))


@dataclass(frozen=True)
class Told:
    """An answer; `object` None where there is an error."""

    error: str
    warnings: list[str]
    object: Any


class Oracle:
    """with Oracle() as upstream: upstream.ask(body)"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [_built()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, body: Any, old: Any = None, subresource: str = "") -> Told:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"new": body, "old": old, "sub": subresource}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Told(answer["error"], answer["warnings"] or [], answer["object"])

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _built() -> Path:
    """The program, built where it is missing or older than its source."""
    program, source = BUILD / "oracle", Path(__file__).with_name("main.go")
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, BUILD / "main.go")
    module = Path(_go("mod", "download", "-json", f"k8s.io/kubernetes@{VERSION}", field="Dir"))
    (BUILD / "go.mod").write_text(_requirements((module / "go.mod").read_text()))
    shutil.copy(module / "go.sum", BUILD / "go.sum")
    _go("build", "-o", "oracle", ".")
    return program


def _requirements(text: str) -> str:
    """The go.mod of kubernetes as that of a program that uses it: its staging modules from where they are published."""
    text = re.sub(r"(?m)^module .*", "module oracle", text)
    text = re.sub(r"(?m)^(\s+k8s\.io/[a-z-]+) v0\.0\.0$", rf"\1 {STAGING}", text)
    text = re.sub(r"replace \([^)]*\)|(?m:^replace .*$)", "", text)
    return text.replace("require (", f"require (\n\tk8s.io/kubernetes {VERSION}", 1)


def _go(*arguments: str, field: str = "") -> str:
    environment = {**os.environ, "GOFLAGS": "-mod=mod"}
    done = subprocess.run(["go", *arguments], cwd=BUILD, env=environment, check=True, capture_output=True, text=True)
    return str(json.loads(done.stdout)[field]) if field else done.stdout
