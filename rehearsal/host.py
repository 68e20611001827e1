"""What a rehearsal needs of the machine that it runs on: checked, and installed where it can be, before it starts."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# What runs a machine, its network and its image: the file that shows that it is there, and its Debian package.
# A name without a slash is looked up on PATH.
_NEEDED = {
    "podman": "podman",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "nft": "nftables",
    "iptables": "iptables",
    "ip": "iproute2",
    "sysctl": "procps",
    "unshare": "util-linux",
    "nmap": "nmap",
    "ssh": "openssh-client",
}

_GIB = 1024**3
# Three machines with a database take about 1 GiB, building the image or Pulumi up to 2.
_FREE_MEMORY = 2 * _GIB
# Pulumi and what it is built from, the image, and what three machines write.
_FREE_DISK = 5 * _GIB
_STORAGE = Path("/var/lib/containers")

# After this time the archive may have deleted the versions that the lists name.
_LISTS_AGE = 24 * 3600
_LISTS = Path("/var/lib/apt/lists")

# Made and used in a network namespace of its own: nothing of it is seen outside, and nothing is left.
_KERNEL_PROBE = """
set -e
ip link add probe-br type bridge
ip link add probe-a type veth peer name probe-b
ip link set probe-b master probe-br
nft add table inet probe
"""


class HostError(Exception):
    """This machine can't run a rehearsal; the message says, a line each, all that is missing and what to do."""


def prepare(progress: Callable[[str], None]) -> None:
    """Check this machine and install the packages that are missing (Debian, Ubuntu).

    ``progress`` gets a line before what takes more than a moment. Raises HostError with every failure that was found.
    """
    if platform.system() != "Linux":
        raise HostError("A rehearsal boots Linux machines in containers: it needs Linux (a virtual machine will do).")
    failures = [
        failure
        for failure in (
            _privilege_failure(os.geteuid()),
            cgroup_failure(Path("/proc/self/mountinfo").read_text()),
            memory_failure(Path("/proc/meminfo").read_text()),
            _disk_failure(),
        )
        if failure
    ]
    packages = missing_packages(_is_there)
    if packages and not failures:
        try:
            _install(packages, progress)
        except HostError as error:
            failures.append(str(error))
    elif packages:
        failures.append(f"Not installed: {', '.join(packages)}. They will be installed when the rest is in order.")
    if not failures and (failure := _kernel_failure()):
        failures.append(failure)
    if failures:
        raise HostError("\n".join(failures))


def missing_packages(is_there: Callable[[str], bool]) -> list[str]:
    """Return the packages whose file or program ``is_there`` denies."""
    return [package for name, package in _NEEDED.items() if not is_there(name)]


def memory_failure(meminfo: str) -> str | None:
    """Say what is wrong with the memory, from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            available = int(value.split()[0]) * 1024
            if available >= _FREE_MEMORY:
                return None
            return (
                f"Only {available / _GIB:.1f} GiB of memory are free, and a rehearsal needs {_FREE_MEMORY // _GIB}: "
                "end something, or remove another rehearsal (make down)."
            )
    return "The kernel does not say how much memory is free (/proc/meminfo has no MemAvailable)."


def cgroup_failure(mountinfo: str) -> str | None:
    """Say what is wrong with control groups, from the text of /proc/self/mountinfo."""
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in mountinfo.splitlines()}
    if kinds & {"cgroup", "cgroup2"}:
        return None
    return "No control groups are mounted, and machines boot in them: mount -t cgroup2 none /sys/fs/cgroup"


def disk_failure(free: int, folder: Path) -> str | None:
    """Say what is wrong with ``free`` bytes of space in ``folder``."""
    if free >= _FREE_DISK:
        return None
    return (
        f"Only {free / _GIB:.1f} GiB are free in {folder}, and a rehearsal needs {_FREE_DISK // _GIB}: make room there."
    )


def _disk_failure() -> str | None:
    folder = next(folder for folder in (_STORAGE, *_STORAGE.parents) if folder.exists())
    return disk_failure(shutil.disk_usage(folder).free, folder)


def _privilege_failure(user: int) -> str | None:
    if user == 0:
        return None
    return "A rehearsal makes networks and boots machines, which only root may: run it with sudo (sudo make up)."


def _kernel_failure() -> str | None:
    """Try the kinds of network that a rehearsal makes."""
    done = subprocess.run(["unshare", "--net", "sh", "-c", _KERNEL_PROBE], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
    return (
        f"The kernel does not let this machine make network namespaces, bridges, veth pairs and nftables tables "
        f"({reason[0]}): in a container, it must be privileged; on a small kernel, load bridge, veth and nf_tables."
    )


def _is_there(name: str) -> bool:
    return Path(name).exists() if "/" in name else shutil.which(name) is not None


def _install(packages: list[str], progress: Callable[[str], None]) -> None:
    if shutil.which("apt-get") is None:
        raise HostError(f"Not installed: {', '.join(packages)} (names as in Debian). Install them and try again.")
    progress(f"installing {', '.join(packages)}")
    # One archive of several that is out of reach makes an update fail, and the packages may come from the others.
    update_failure = _apt_get("update") if lists_are_old(_LISTS, time.time()) else None
    if failure := _apt_get("install", "--yes", "--no-install-recommends", *packages):
        told = "\n".join(part for part in (update_failure, failure) if part)
        raise HostError(f"Can't install what is missing; is the package archive within reach?\n{told}")


def lists_are_old(folder: Path, now: float) -> bool:
    """Tell whether the archive's package lists are missing or older than a day; ``now`` is in seconds of the epoch."""
    times = [entry.stat().st_mtime for entry in folder.glob("*_Packages*")]
    # apt keeps the archive's own time on the lists, and sets the folder's when it renews any of them.
    return not times or now - max(*times, folder.stat().st_mtime) > _LISTS_AGE


def _apt_get(*arguments: str) -> str | None:
    """Run apt-get without questions, waiting for another one that holds the lock; return what it says of a failure."""
    done = subprocess.run(
        ["apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold", *arguments],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))]
    # apt-get update takes an archive out of reach for a warning.
    if done.returncode == 0 and not (arguments[0] == "update" and complaints):
        return None
    last = (complaints or done.stdout.splitlines())[-5:]
    return "\n".join([f"  apt-get {arguments[0]}:", *(f"    {line}" for line in last)])
