"""Run a command in a virtual machine with Debian's kernel: `python -m tests.vm [--timeout SECONDS] -- COMMAND…`

The guest is emulated (KVM is rarely there where tests run), so Python is some fifteen times slower in it. It sees the
host's files through a layer that is thrown away, in the same working directory and environment, and has no network but
lo. The exit code is the command's. Needs qemu-system-x86, busybox-static and apt, which fetches the kernel once.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("KONE_TEST_VM", Path.home() / ".cache" / "kone-test-vm"))
KERNEL = "linux-image-amd64"
# What a guest without hardware can use of the kernel package's modules.
TREES = ("net", "lib", "crypto", "arch/x86/crypto", "fs/9p", "fs/overlayfs", "fs/netfs", "fs/fscache", "drivers/virtio")
FILES = (
    "drivers/net/dummy.ko",
    "drivers/net/veth.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/ifb.ko",
    "drivers/char/hw_random/virtio-rng.ko",
    "drivers/char/hw_random/rng-core.ko",
)
EARLY = ("virtio_pci", "virtio-rng", "9pnet_virtio", "9p", "overlay")  # in the initramfs, with what they need
ENDED = re.compile(rb"guest ended with (\d+)\r?\n?$")
FAILED = 125
SLOWNESS = 4  # of the guest, at least; limits of tests are that much longer


class VmError(Exception):
    """The guest cannot be made or did not start; the text says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--timeout", type=int, default=600, help="seconds until the guest is powered off")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    try:
        return run(shlex.join(command), arguments.timeout)
    except VmError as error:
        print(f"tests.vm: {error}", file=sys.stderr)
        return FAILED


def run(command: str, timeout_s: int) -> int:
    """Run the shell command in a guest, its output on stdout; its exit code. Raises VmError."""
    for tool, package in (("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")):
        if shutil.which(tool) is None:
            raise VmError(f"{tool} is missing: apt-get install {package}")
    folder = prepared()
    environment = {"KONE_TEST_SLOWNESS": str(SLOWNESS), **os.environ}
    exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in environment.items() if k.isidentifier())
    script = f"{exports}cd {shlex.quote(os.getcwd())} || exit {FAILED}\n{command}\n"
    with tempfile.TemporaryDirectory(prefix="kone-vm-") as place:
        initrd = Path(place) / "initrd"
        initrd.write_bytes((folder / "initrd").read_bytes() + archive([("command", 0o755, script.encode())]))
        console = Path(place) / "console"
        machine = [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"),
            *("-kernel", str(folder / "vmlinuz"), "-initrd", str(initrd), "-device", "virtio-rng-pci"),
            *("-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off tsc=reliable random.trust_cpu=on"),
            *("-serial", f"file:{console}", "-serial", "stdio"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        ]
        guest = subprocess.Popen(machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        signal.signal(signal.SIGALRM, lambda *_: guest.kill())
        signal.alarm(timeout_s)
        assert guest.stdout is not None
        code = None
        for line in guest.stdout:
            if ended := ENDED.search(line):
                code = int(ended[1])
                line = line[: ended.start()]
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        guest.wait()
        signal.alarm(0)
        if code is None:
            last = "\n".join(console.read_text(errors="replace").splitlines()[-15:]) if console.exists() else ""
            raise VmError(f"the guest ended, or was ended after {timeout_s} s, without an exit code:\n{last}")
        return code


def prepared() -> Path:
    """The folder with kernel, modules and initramfs; made at the first use. Raises VmError."""
    CACHE.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        depends = subprocess.run(["apt-cache", "depends", KERNEL], capture_output=True, text=True).stdout
        if (found := re.search(r"Depends: (linux-image-[0-9]\S+)", depends)) is None:
            raise VmError(f"apt knows no {KERNEL}: run apt-get update")
        folder = CACHE / found[1]
        if not (folder / "modules").is_dir():
            _fetch(found[1], folder)
        _make_initrd(folder)
        return folder


def _fetch(package: str, folder: Path) -> None:
    """The package's kernel and those of its modules that a guest can use, with their index."""
    print(f"tests.vm: fetching {package}, once, into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as text:
        place = Path(text)
        _do(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], place)
        (deb,) = place.glob("*.deb")
        kept = ["./boot/vmlinuz-*", "./lib/modules/*/modules.*"]
        kept += [f"./lib/modules/*/kernel/{tree}/*" for tree in TREES]
        kept += [f"./lib/modules/*/kernel/{file}" for file in FILES]
        unpack = f"dpkg-deb --fsys-tarfile {deb.name} | tar -x --wildcards {shlex.join(kept)}"
        subprocess.run(["bash", "-c", unpack], cwd=place, stderr=subprocess.DEVNULL)  # a pattern may match nothing
        (release,) = (place / "lib" / "modules").iterdir()
        _do(["busybox", "depmod", "-b", str(place), release.name], place)
        folder.mkdir()
        shutil.move(str(next((place / "boot").glob("vmlinuz-*"))), folder / "vmlinuz")
        shutil.move(str(place / "lib" / "modules"), folder / "modules")


def _make_initrd(folder: Path) -> None:
    """busybox, guest.sh, and the modules by which the guest finds the host's files."""
    (release,) = (folder / "modules").iterdir()
    home = f"lib/modules/{release.name}"
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    entries: list[tuple[str, int, bytes | None]] = [(d, 0o755, None) for d in ("proc", "sys", "dev", "bin", "lib")]
    entries += [(d, 0o755, None) for d in ("lower", "upper", "root", "lib/modules", home)]
    entries += [("bin/busybox", 0o755, busybox.read_bytes()), ("init", 0o755, (HERE / "guest.sh").read_bytes())]
    entries.append(("modules", 0o644, str(folder / "modules").encode()))
    made: set[str] = {home}
    for module in _early_modules(release):
        for parent in reversed(Path(module).parents):
            if str(parent) != "." and f"{home}/{parent}" not in made:
                made.add(f"{home}/{parent}")
                entries.append((f"{home}/{parent}", 0o755, None))
        entries.append((f"{home}/{module}", 0o644, (release / module).read_bytes()))
    for index in ("modules.dep", "modules.alias", "modules.symbols"):
        if (release / index).exists():
            entries.append((f"{home}/{index}", 0o644, (release / index).read_bytes()))
    (folder / "initrd").write_bytes(archive(entries))


def _early_modules(release: Path) -> Iterator[str]:
    """The files of EARLY with all that they need, by paths below the release's folder."""
    needs = {}
    for line in (release / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    seen: set[str] = set()
    left = [path for path in needs if Path(path).stem.replace("_", "-") in {n.replace("_", "-") for n in EARLY}]
    while left:
        path = left.pop()
        if path not in seen:
            seen.add(path)
            left += needs[path]
            yield path


def archive(entries: list[tuple[str, int, bytes | None]]) -> bytes:
    """A cpio archive as the kernel unpacks it (newc), of files and, where there is no content, folders."""
    parts = []
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        kind = stat.S_IFDIR if content is None else stat.S_IFREG
        data = content or b""
        fields = (number, kind | mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def _do(command: list[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode:
        raise VmError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    sys.exit(main())
