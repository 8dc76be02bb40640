"""The command line: a contract that other tools rely on.

What goes wrong is one line that says what to do, never a traceback.

Exit codes: 0 done, 1 it could not be done, 2 the command line or a setting is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kone import KUBERNETES_VERSION, __version__
from kone.config import ConfigError, OneLineParser, Settings, add_flags, from_arguments

_WHERE = ("data_dir", "instance", "config")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        sys.exit(0)
    try:
        sys.exit(arguments.run(arguments))
    except ConfigError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="kone", description="Kubernetes on one machine, in one process.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    server = commands.add_parser("server", help="run the node in the foreground")
    add_flags(server)
    server.set_defaults(run=_server)

    kubeconfig = commands.add_parser("kubeconfig", help="print the administrator's kubeconfig")
    add_flags(kubeconfig, _WHERE)
    kubeconfig.set_defaults(run=_kubeconfig)

    status = commands.add_parser("status", help="say how the node is")
    add_flags(status, _WHERE)
    status.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how to print it")
    status.set_defaults(run=_status)

    cleanup = commands.add_parser(
        "cleanup", help="remove every trace of a stopped node: containers, links, rules, files"
    )
    add_flags(cleanup, (*_WHERE, "docker_host", "cni_bin_dir"))
    cleanup.add_argument("--keep-data", action="store_true", help="keep the data directory")
    cleanup.set_defaults(run=_cleanup)

    runtime = commands.add_parser("runtime", help="the OCI runtime by which a pod's containers share their host name")
    runtime.add_argument("action", choices=("install", "remove"), help="register it with dockerd, or undo that")
    runtime.add_argument("--bin-dir", default="/usr/local/sbin", metavar="DIR", help="where its script is kept")
    runtime.add_argument(
        "--daemon-config", default="/etc/docker/daemon.json", metavar="FILE", help="dockerd's configuration"
    )
    add_flags(runtime, ("docker_host", "config"))
    runtime.set_defaults(run=_runtime)

    version = commands.add_parser("version", help="print the versions")
    version.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how to print them")
    version.set_defaults(run=_version)
    return parser


def _fail(message: str, code: int = 1) -> NoReturn:
    print(f"kone: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _server(arguments: argparse.Namespace) -> int:
    settings = from_arguments(arguments)
    from kone import server

    try:
        server.run(settings)
    except server.StartError as error:
        _fail(str(error), 1)
    return 0


def _kubeconfig(arguments: argparse.Namespace) -> int:
    settings = from_arguments(arguments)
    try:
        print(settings.kubeconfig_path.read_text(), end="")
    except FileNotFoundError:
        _fail(f"{settings.kubeconfig_path} does not exist: start `kone server --data-dir {settings.data_dir}` first")
    except OSError as error:
        _fail(f"{settings.kubeconfig_path}: {error.strerror}; run as the user that started kone")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    settings = from_arguments(arguments)
    from kone import status

    report = status.collect(settings)
    if arguments.output == "json":
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print(status.render(report))
    return 0 if report.ready else 1


def _cleanup(arguments: argparse.Namespace) -> int:
    settings = from_arguments(arguments)
    from kone import cleanup

    try:
        for line in cleanup.run(settings, keep_data=arguments.keep_data):
            print(line)
    except cleanup.CleanupError as error:
        _fail(str(error))
    return 0


def _runtime(arguments: argparse.Namespace) -> int:
    settings = from_arguments(arguments)
    from kone.runtime import uts_runtime

    change = uts_runtime.install if arguments.action == "install" else uts_runtime.remove
    try:
        for line in change(Path(arguments.bin_dir), settings.docker_host, Path(arguments.daemon_config)):
            print(line)
    except uts_runtime.RuntimeInstallError as error:
        _fail(str(error))
    return 0


def _version(arguments: argparse.Namespace) -> int:
    versions: dict[str, Any] = {"kone": __version__, "kubernetes": KUBERNETES_VERSION, "python": sys.version.split()[0]}
    if arguments.output == "json":
        print(json.dumps(versions))
    else:
        print(f"kone v{__version__} (Kubernetes {KUBERNETES_VERSION}, Python {versions['python']})")
    return 0


def settings_of(argv: Sequence[str]) -> Settings:
    """The settings that `kone server ARGV` would run with: for tests and tools. Raises ConfigError."""
    return from_arguments(_parser().parse_args(["server", *argv]))
