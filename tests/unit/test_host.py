"""What is said of a machine that can't run a rehearsal, and what is installed on one that can."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rehearsal import host
from rehearsal.host import HostError

MIB = 1024 * 1024


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A machine with everything in order but what the test changes; returns what `prepare` does."""

    def run(missing: tuple[str, ...] = (), user: int = 0, free_disk: int = 100 << 30, apt: str = "ok") -> list[str]:
        done: list[str] = []

        def install(packages: list[str], _: object) -> None:
            if apt != "ok":
                raise HostError(apt)
            done.append("install " + " ".join(packages))

        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(host, "memory_failure", lambda _: None)
        monkeypatch.setattr(host, "cgroup_failure", lambda _: None)
        monkeypatch.setattr(host, "_disk_failure", lambda: host.disk_failure(free_disk, Path("/var/lib")))
        monkeypatch.setattr(host, "_is_there", lambda name: name not in missing)
        monkeypatch.setattr(host, "_install", install)
        monkeypatch.setattr(host, "_kernel_failure", lambda: done.append("probe"))
        host.prepare(done.append)
        return done

    return run


def test_a_machine_with_everything_is_only_probed(machine: Callable[..., list[str]]) -> None:
    assert machine() == ["probe"]


def test_only_what_is_missing_is_installed_and_in_one_go(machine: Callable[..., list[str]]) -> None:
    assert machine(missing=("nft", "podman")) == ["install podman nftables", "probe"]


def test_all_failures_are_told_at_once_and_nothing_is_installed(machine: Callable[..., list[str]]) -> None:
    with pytest.raises(HostError) as caught:
        machine(missing=("nmap",), user=1000, free_disk=1 << 30)
    told = str(caught.value).splitlines()
    assert len(told) == 3
    assert "sudo make up" in told[0]
    assert "1.0 GiB" in told[1]
    assert "/var/lib" in told[1]
    assert "nmap" in told[2]


def test_an_unreachable_archive_is_told(machine: Callable[..., list[str]]) -> None:
    with pytest.raises(HostError, match="apt-get update failed"):
        machine(missing=("nmap",), apt="apt-get update failed")


@pytest.mark.parametrize(("mib", "enough"), [(2048, True), (2047, False)])
def test_memory(mib: int, enough: bool) -> None:
    failure = host.memory_failure(f"MemTotal: 9999999 kB\nMemAvailable:   {mib * 1024} kB\n")
    assert (failure is None) == enough


def test_memory_that_the_kernel_does_not_tell() -> None:
    assert "MemAvailable" in (host.memory_failure("MemTotal: 1 kB\n") or "")


@pytest.mark.parametrize(
    ("kind", "mounted"), [("cgroup2 none rw", True), ("cgroup cgroup rw,memory", True), ("tmpfs cgroup rw", False)]
)
def test_control_groups(kind: str, mounted: bool) -> None:
    mountinfo = f"25 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n30 25 0:26 / /sys/fs/cgroup rw - {kind}\n"
    assert (host.cgroup_failure(mountinfo) is None) == mounted


def test_package_lists_are_renewed_when_missing_or_old(tmp_path: Path) -> None:
    now = tmp_path.stat().st_mtime
    assert host.lists_are_old(tmp_path, now)
    (tmp_path / "archive_dists_stable_main_binary-amd64_Packages").touch()
    assert not host.lists_are_old(tmp_path, now)
    assert host.lists_are_old(tmp_path, now + 2 * 24 * 3600)
