"""How this host runs systemd in containers: found out each time from the host, nothing remembered."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rehearsal.store import RealmError

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1048576
"""What podman asks for by default (open files and processes)."""

# What a virtual machine's root can do and that services rely on. NET_ADMIN: the firewall; SYS_ADMIN: systemd's
# sandboxing, silently ignored without it; the rest: `ss -p`, MySQL's and systemd's priorities and limits, `chattr`.
CAPABILITIES = {
    "NET_ADMIN": 12,
    "SYS_ADMIN": 21,
    "DAC_READ_SEARCH": 2,
    "LINUX_IMMUTABLE": 9,
    "IPC_LOCK": 14,
    "SYS_PTRACE": 19,
    "SYS_NICE": 23,
    "SYS_RESOURCE": 24,
}
"""Names with their bit numbers, `linux/capability.h`."""


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
    timeout: float | None = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the host. Raises RealmError with the command's own last words when it fails."""
    try:
        done = subprocess.run(
            argv,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, **env} if env else None,
        )
    except FileNotFoundError as missing:
        raise RealmError(f"{argv[0]} is not installed (it's needed to rehearse)") from missing
    except subprocess.TimeoutExpired as late:
        raise RealmError(f"`{' '.join(argv[:4])} ...` did not end within {timeout:.0f} s") from late
    if check and done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise RealmError(f"`{' '.join(argv)[:160]}` failed: {words[-1][:1000]}")
    return done


class Podman:
    """The podman command line of one realm."""

    def __init__(self, configuration: Path) -> None:
        """`configuration` is the realm's containers.conf: it names the boot hook.

        Podman hands it to the monitor of each container, so the hook also runs when podman itself restarts a machine
        (its command-line form, `--hooks-dir`, is not handed on by podman 4).
        """
        self._env = {"CONTAINERS_CONF": str(configuration)}

    def __call__(
        self, *args: str, check: bool = True, stdin: str | None = None, timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `podman ARGS`. Raises RealmError when it fails and `check` is on."""
        argv = ["podman", *global_options(), *args]
        return run(argv, check=check, stdin=stdin, env=self._env, timeout=timeout)

    def json(self, *args: str) -> list[dict[str, Any]]:
        """Run a podman command that prints a JSON list."""
        rows: list[dict[str, Any]] = json.loads(self(*args, "--format", "json").stdout or "[]")
        return rows or []


def global_options() -> list[str]:
    """Options that stand before podman's command, from this host's cgroups."""
    options = []
    if _hybrid():
        # crun: "cgroups in hybrid mode not supported".
        if shutil.which("runc") is None:
            raise RealmError("this host mounts cgroups in hybrid mode, which crun refuses: install runc")
        options += ["--runtime", "runc"]
    if not Path("/run/systemd/system").is_dir():
        options.append("--cgroup-manager=cgroupfs")
    return options


def run_options() -> list[str]:
    """Options of `podman create` that a systemd machine needs on this host."""
    options = ["--systemd=always", "--cap-add", ",".join(_capabilities())]
    # Where this process may not raise its own limits, podman's defaults make the runtime fail; podman itself stays
    # below the highest process id.
    highest = {"nofile": UNLIMITED, "nproc": int(Path("/proc/sys/kernel/pid_max").read_text())}
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(limit)[1]
        if 0 <= hard < UNLIMITED:
            most = min(hard, highest[name])
            options += ["--ulimit", f"{name}={most}:{most}"]
    if not _unified():
        options += [
            "--env",
            "SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        ]
    return options


def _unified() -> bool:
    return (CGROUPS / "cgroup.controllers").exists()


def _hybrid() -> bool:
    return not _unified() and (CGROUPS / "unified" / "cgroup.controllers").exists()


def _capabilities() -> list[str]:
    """Those of CAPABILITIES that this process may give on."""
    bounds = 0
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapBnd:"):
                bounds = int(line.split()[1], 16)
    return [name for name, bit in CAPABILITIES.items() if bounds >> bit & 1]
