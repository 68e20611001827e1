"""`uds update`: security updates now, and the reboots that they ask for, one server at a time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uds import ssh
from uds.stack import OperatorError, Stack

# Prints what is newer than before, a package a line. What is a security update, the server's own settings say: they
# are what the nightly run follows too.
_UPGRADE = """
set -eu
export LC_ALL=C
packages() { dpkg-query -W -f '${binary:Package} ${Version}\\n'; }
before=$(packages)
apt-get -qq update >&2
unattended-upgrade >&2
packages | grep -vxF "$before" || true
"""

# What monit asks too: it says why.
_WANTS_REBOOT = "/usr/local/lib/uds/watch reboot"

# When systemd began. The kernel's own number of the boot is no sign where the kernel is shared, as in a rehearsal.
_BOOT = "systemctl show --value --property=UserspaceTimestampMonotonic"

# Seconds. A large server's firmware alone can take two minutes.
_PATIENCE = 600
_PAUSE = 1


@dataclass(frozen=True)
class Updated:
    """What became of a server: its new packages, and whether they took a reboot."""

    server: str
    packages: tuple[str, ...]
    rebooted: bool


def update(stack: Stack, seen: Callable[[str], None]) -> list[Updated]:
    """Update the servers one after the other, and reboot those that ask for it; `seen` is told what is going on.

    The next one's turn comes when all services of the last one run again. The bastion is the last: while it reboots,
    the others can't be reached.

    Raises:
        OperatorError: a server can't be updated, or has not come back whole. Those after it are as they were.
    """
    outputs = stack.outputs()
    password = stack.section("deploy")["sudoPassword"]
    done = []
    with ssh.opened(stack, outputs) as command:

        def root(server: str, line: str) -> tuple[int, str]:
            ended = ssh.as_root(command, server, password, line)
            return ended.returncode, ended.stdout.strip() or ended.stderr.strip()

        for server in _in_order(outputs["servers"]):
            seen(f"{server}: updates")
            status, said = root(server, _UPGRADE)
            if status:
                raise OperatorError(f"{server}: {said or 'it does not answer'}")
            wants_reboot, why = root(server, _WANTS_REBOOT)
            if wants_reboot not in (0, 1):
                raise OperatorError(f"{server}: {why or 'it does not answer'}")
            if wants_reboot:
                seen(f"{server}: reboots ({'; '.join(why.splitlines())})")
                _reboot(server, root)
            done.append(Updated(server, tuple(said.splitlines()), bool(wants_reboot)))
    return done


def _in_order(servers: Mapping[str, Any]) -> list[str]:
    # The database server first: the application's servers then find it as it will be.
    return sorted(servers, key=lambda name: (name == "app-1", servers[name]["role"] == "app", name))


def _reboot(server: str, root: Callable[[str, str], tuple[int, str]]) -> None:
    _, before = root(server, _BOOT)
    root(server, "systemctl reboot")
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        status, boot = root(server, _BOOT)
        if not status and boot != before:
            break
        time.sleep(_PAUSE)
    else:
        raise OperatorError(f"{server} has not come back after its reboot: look at its console at the provider.")
    # Waits until it has started everything, or failed to.
    root(server, "systemctl is-system-running --wait")
    _, failed = root(server, "systemctl list-units --failed --plain --no-legend --full | cut -d ' ' -f 1")
    if failed:
        raise OperatorError(f"{server} came back from its reboot without {', '.join(failed.split())}.")
