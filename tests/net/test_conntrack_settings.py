"""Connection tracking as kube-proxy sets it, and as it was afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from kone.net.conntrack_settings import CLOSE_WAIT, ESTABLISHED, MAX, apply, give_back, wanted


@pytest.mark.parametrize(
    ("now", "cpus", "changed"),
    [
        ({MAX: 65536, ESTABLISHED: 432000, CLOSE_WAIT: 60}, 2, {MAX: 131072, ESTABLISHED: 86400, CLOSE_WAIT: 3600}),
        ({MAX: 65536, ESTABLISHED: 86400, CLOSE_WAIT: 3600}, 8, {MAX: 262144}),
        ({MAX: 65536, ESTABLISHED: 86400, CLOSE_WAIT: 3600}, 64, {MAX: 1048576}),
        ({MAX: 2000000, ESTABLISHED: 86400, CLOSE_WAIT: 3600}, 64, {}),
        ({ESTABLISHED: 432000}, 2, {ESTABLISHED: 86400}),
        ({}, 2, {}),
    ],
    ids=["a small host", "8 CPUs", "at most a million", "never less", "where the kernel has it", "no tracking"],
)
def test_what_is_set(now: dict[str, int], cpus: int, changed: dict[str, int]) -> None:
    assert wanted(now, cpus) == changed


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    for name, value in ((MAX, 4000000), (ESTABLISHED, 432000), (CLOSE_WAIT, 60)):
        (folder / name).write_text(f"{value}\n")
    return folder


def test_it_is_as_before_afterwards_however_often_kone_started(kernel: Path, tmp_path: Path) -> None:
    apply(tmp_path, kernel)
    (kernel / CLOSE_WAIT).write_text("60\n")  # someone else, and the next start of kone
    apply(tmp_path, kernel)
    assert (kernel / CLOSE_WAIT).read_text() == "3600"
    assert give_back(tmp_path, kernel) == [ESTABLISHED, CLOSE_WAIT]
    assert [int((kernel / name).read_text()) for name in (MAX, ESTABLISHED, CLOSE_WAIT)] == [4000000, 432000, 60]


def test_what_someone_else_set_since_stays(kernel: Path, tmp_path: Path) -> None:
    apply(tmp_path, kernel)
    (kernel / CLOSE_WAIT).write_text("120")
    assert give_back(tmp_path, kernel) == [ESTABLISHED]
    assert (kernel / CLOSE_WAIT).read_text() == "120"


def test_a_host_without_tracking_has_nothing_set(tmp_path: Path) -> None:
    apply(tmp_path, tmp_path / "nowhere")
    assert give_back(tmp_path, tmp_path / "nowhere") == []
