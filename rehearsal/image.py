"""The machines' images: stock Debian as a cloud gives it, with nothing of this project inside.

One of them stands in for Ubuntu, whose archive gives Oracle's MySQL where Debian's gives MariaDB: it is a Debian 13
that knows of a later Debian's MySQL.
"""

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from rehearsal.podman import run
from rehearsal.store import RealmError

Progress = Callable[[str], None]

SUITES = {"debian13": "trixie", "debian12": "bookworm", "ubuntu24.04": "trixie"}
DEFAULT_IMAGE = "debian13"

PACKAGES = (
    "ca-certificates",
    "cloud-init",
    "curl",
    "dbus",
    "iptables",
    "libnss-myhostname",
    "libpam-systemd",
    "openssh-server",
    "python3",
    "sudo",
)

# Only MySQL and the libraries that it can't do without come from there; everything else stays as it is.
_MYSQL_PINS = """\
Package: *
Pin: release n=sid
Pin-Priority: 50

Package: mysql-* src:gcc-16 src:google-perftools src:glibc
Pin: release n=sid
Pin-Priority: 500
"""
# The mirror is the one that the image itself was made from. Of a frozen copy, this Release has expired.
_MYSQL_SOURCE = """awk '$1 == "deb" { print "deb [check-valid-until=no]", $2, "sid main"; exit }'"""
EXTRAS = {
    "ubuntu24.04": (
        f'{_MYSQL_SOURCE} "$1/etc/apt/sources.list" > "$1/etc/apt/sources.list.d/mysql.list"',
        f"printf %s '{_MYSQL_PINS}' > \"$1/etc/apt/preferences.d/mysql\"",
    )
}

# What image builders take out at the end, so that two servers of one image have nothing in common.
SEAL = (
    'rm -f "$1"/etc/ssh/ssh_host_*',
    ': > "$1/etc/machine-id"; rm -f "$1/var/lib/dbus/machine-id"',
    'echo localhost > "$1/etc/hostname"; : > "$1/etc/resolv.conf"; chmod 0644 "$1/etc/hostname" "$1/etc/resolv.conf"',
    # Debian's cloud images say so; else cloud-init asks for a locale that nobody generated, and reports an error.
    'echo LANG=C.UTF-8 > "$1/etc/default/locale"',
    'rm -rf "$1"/var/lib/cloud/* "$1"/var/log/cloud-init*.log',
)


def ensure(image: str, progress: Progress) -> str:
    """Have the image in podman's storage and give its name; built once a recipe (about 30 s).

    Safe to kill and to call twice at once: an image gets its name as the last step.
    Raises RealmError for an unknown image or a failed build.
    """
    if image not in SUITES:
        raise RealmError(f"unknown image {image!r}; known: {', '.join(SUITES)}")
    recipe = _recipe(image)
    name = f"localhost/uds-{image}:{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    if _exists(name):
        return name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uds"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{image}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not _exists(name):
            progress(f"building the {image} image from the Debian archive (once, about 30 s)")
            _build(recipe, name, cache)
    return name


def _recipe(image: str) -> list[str]:
    hooks = [f"--customize-hook={line}" for line in (*EXTRAS.get(image, ()), *SEAL)]
    return ["mmdebstrap", "--variant=important", f"--include={','.join(PACKAGES)}", *hooks, SUITES[image]]


def _build(recipe: list[str], name: str, cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="image-") as folder:
        tar = Path(folder) / "root.tar"
        try:
            # Its whole log matters when a download fails, so it isn't cut to a last line.
            subprocess.run([*recipe, str(tar)], check=True, capture_output=True, text=True, timeout=1800)
        except FileNotFoundError as missing:
            raise RealmError("mmdebstrap is not installed (it builds the machines' image)") from missing
        except subprocess.TimeoutExpired as late:
            raise RealmError("building the image took more than 30 minutes: is the Debian archive reachable?") from late
        except subprocess.CalledProcessError as failed:
            tail = "\n".join(failed.stderr.strip().splitlines()[-15:])
            raise RealmError(f"building the image failed:\n{tail}") from failed
        run(["podman", "import", "--change", 'CMD ["/sbin/init"]', str(tar), name], timeout=600)


def _exists(name: str) -> bool:
    return run(["podman", "image", "exists", name], check=False).returncode == 0
