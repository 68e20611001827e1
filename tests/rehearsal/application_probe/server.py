"""A release that tries what an application must not be able to do, and says on / how far it came."""

import ctypes
import json
import os
import resource
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOME = Path("/usr/local/application")
OWN_STATE = Path("/var/lib/application")
CONFIGURATION = json.loads((HOME / "config/config-production.json").read_text())
# Set-user-ID root, put there by the test: `id` and a shell.
SETUID = Path("/usr/local/lib/setuid-probe")
# Put there by the test, where everybody may leave something.
OF_OTHERS = [Path(place) / "of-others" for place in ("/tmp", "/var/tmp", "/dev/shm")]  # noqa: S108 - names of places
# None of an application's business, whatever the permissions in there are.
CLOSED = [Path(f"/{name}") for name in "home root run/user etc/ssh etc/iptables var/log var/backups boot".split()]
PER_LINUX32 = 8
NOT_FILES = ("/proc", "/sys", "/dev/pts", "/dev/fd")


def everything() -> Iterator[tuple[Path, os.stat_result]]:
    """Every file and folder that can be seen, links left out."""
    for name, folders, files in os.walk("/"):
        folder = Path(name)
        folders[:] = [name for name in folders if str(folder / name) not in NOT_FILES]
        for path in (folder / name for name in (*folders, *files)):
            try:
                status = path.lstat()
            except OSError:
                continue
            if not stat.S_ISLNK(status.st_mode):
                yield path, status


def writable() -> list[str]:
    """The folders and plain files that can be written to. Tried, since permissions don't tell of read-only mounts."""
    found = []
    for path, status in everything():
        works = False
        if stat.S_ISDIR(status.st_mode):
            works = attempt((path / ".probe").touch)
            if works:
                (path / ".probe").unlink()
        elif stat.S_ISREG(status.st_mode):
            works = opens(path, os.O_WRONLY | os.O_APPEND)
        if works:
            found.append(str(path))
    return found


def readable_secrets() -> list[str]:
    """The files that are not for everyone, and can be read all the same."""
    return [
        str(path)
        for path, status in everything()
        if stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IROTH and opens(path, os.O_RDONLY)
    ]


def opens(path: Path, flags: int) -> bool:
    """Whether a file can be opened."""
    return attempt(lambda: os.close(os.open(path, flags)))


def attempt(work: Callable[[], object]) -> bool:
    """Whether it works."""
    try:
        work()
    except OSError:
        return False
    return True


def connects(address: str, port: int) -> bool:
    """Whether somebody answers there."""
    return attempt(lambda: socket.create_connection((address, port), timeout=3).close())


def output(*command: str) -> str:
    """What a command prints, errors too."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, input="")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return (done.stdout + done.stderr).strip()


def others() -> list[str]:
    """The processes that aren't its own."""
    mine = os.getuid()
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit() and path.stat().st_uid != mine]


def listens(port: int, address: str = "") -> bool:
    """Whether it may listen on another port. What works stays open, to be tried from outside."""
    try:
        OPEN.append(socket.create_server((address, port)))
    except OSError:
        return False
    return True


def changes_personality() -> None:
    """Run as another system's programs do, with its weaker protections."""
    if ctypes.CDLL(None).personality(PER_LINUX32) == -1:
        raise PermissionError


def new_file() -> str:
    """The permissions that its files get."""
    (OWN_STATE / "new").touch()
    return f"{stat.S_IMODE((OWN_STATE / 'new').stat().st_mode):o}"


def make_setuid() -> None:
    """A program of its own for somebody else's rights."""
    own = OWN_STATE / "setuid"
    own.write_bytes(b"#!/bin/sh\n")
    own.chmod(0o4755)


OPEN: list[socket.socket] = []


def probes() -> dict[str, Any]:
    """Everything that is tried, and what came of it."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "writable": writable(),
        "readable secrets": readable_secrets(),
        "reads": [
            path
            for path in (
                "/etc/shadow",
                "/etc/gshadow",
                "/etc/sudoers",
                "/etc/ssh/ssh_host_ed25519_key",
                "/etc/ssh/sshd_config.d/00-hardening.conf",
                "/etc/ssh/authorized_keys.d/deploy",
                "/etc/iptables/rules.v4",
                "/etc/uds/packages",
                "/var/log/sudo.log",
                "/var/lib/uds/hardened",
                "/var/lib/cloud/instance/user-data.txt",
                "/home/deploy/.profile",
                "/root/.profile",
                "/proc/1/environ",
            )
            if opens(Path(path), os.O_RDONLY)
        ],
        "sees": [str(path) for path in OF_OTHERS if path.exists()],
        "looks into": [str(path) for path in CLOSED if attempt(partial(os.listdir, path))],
        "others' shared memory": Path("/proc/sysvipc/shm").read_text().splitlines()[1:],
        "users": Path("/proc/self/uid_map").read_text().split(),
        "new file": new_file(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "personality": attempt(changes_personality),
        "metadata": [
            address for address in ("169.254.169.254", "fd00:a9fe:a9fe::1", "fd00:ec2::254") if connects(address, 80)
        ],
        "setuid id": output(str(SETUID / "id"), "-u"),
        "setuid shell": output(str(SETUID / "sh"), "-p", "-c", "cat /etc/shadow"),
        "sudo": output("sudo", "-n", "id", "-u"),
        "su": output("su", "-s", "/bin/sh", "-c", "id -u", "root"),
        "setuid 0": attempt(lambda: os.setuid(0)),
        "chown": attempt(lambda: os.chown(OWN_STATE, 0, 0)),
        "chmod u+s": attempt(make_setuid),
        "user namespace": output("unshare", "-Ur", "id", "-u"),
        "mount": output("mount", "-t", "tmpfs", "none", str(OWN_STATE)),
        "device": attempt(lambda: os.mknod(OWN_STATE / "device", 0o600 | stat.S_IFBLK, os.makedev(8, 0))),
        "raw socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)),
        "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no new privileges": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "others' processes": others(),
        "signals init": attempt(lambda: os.kill(1, signal.SIGCONT)),
        "changes the host name": attempt(lambda: socket.sethostname("elsewhere")),
        "sysctl": attempt(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1")),
        "low port": listens(443),
        "other port": listens(8080),
        "database": connects(CONFIGURATION["database"]["host"], CONFIGURATION["database"]["port"]),
    }


class Handler(BaseHTTPRequestHandler):
    """Says what was found."""

    def do_GET(self) -> None:
        """Try all."""
        content = (json.dumps(probes()) if self.path == "/" else "ok").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Dual(ThreadingHTTPServer):
    """Both families."""

    address_family = socket.AF_INET6


def main() -> None:
    """Serve."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CONFIGURATION["tls"]["certificateFile"], CONFIGURATION["tls"]["keyFile"])
    server = Dual(("::", CONFIGURATION["ports"]["https"]), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
