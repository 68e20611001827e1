"""Pulumi's own programs for a rehearsal: found on this machine, fetched, or built, with stand-ins for what is missing.

``ensure`` fills a directory that the driver puts in front of PATH. What takes long is kept in the user's cache folder
and taken from there the next time.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The version that is fetched or built; go.mod pins the same one.
VERSION = "3.274.1"
# Older ones don't run policy packs and plugins through the language host as this project needs it.
_OLDEST_USABLE = (3, 229, 0)

_MODULE = Path(__file__).parent / "toolchain"
_CLI_PACKAGE = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
_PLUGIN_PACKAGE = "./cmd/pulumi-resource-command"
# The official installer's source. TLS to this host is what protects the archive, as it is with the installer: the
# releases' checksums come from the same place.
_RELEASES = "https://get.pulumi.com/releases/sdk"
_ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}
# Seconds without an answer after which a host counts as out of reach.
_TIMEOUT = 8

Progress = Callable[[str], None]


class ToolchainError(Exception):
    """Pulumi can be neither found, nor fetched, nor built here; the message says what to install."""


@dataclass(frozen=True)
class Toolchain:
    """What ``ensure`` put into the directory."""

    pulumi: Path
    stand_ins: tuple[str, ...]  # the names of the executables that stand in for Pulumi's own


def ensure(bin_dir: Path, progress: Progress) -> Toolchain:
    """Fill ``bin_dir`` with ``pulumi`` and the stand-ins that it needs, and remove those that it doesn't.

    ``progress`` gets a line before each step that takes more than a moment. Two may call this at the same time, and it
    may be killed at any point. Raises ToolchainError.
    """
    pulumi = _found(bin_dir, progress) or _cached(progress)
    official_host = (pulumi.parent / "pulumi-language-python").exists()
    wanted: dict[str, Path | str] = {"pulumi": pulumi}
    if not official_host and _which("pulumi-language-python", bin_dir) is None:
        # -P: a file in the program's folder must not be taken for a module of the language host.
        wanted["pulumi-language-python"] = f"#!/bin/sh\nexec '{sys.executable}' -P -m rehearsal.language_host \"$@\"\n"
    if not _command_plugin_installed() and not (official_host and _releases_reachable()):
        wanted["pulumi-resource-command"] = _command_plugin(progress)

    bin_dir.mkdir(parents=True, exist_ok=True)
    for name in ("pulumi", "pulumi-language-python", "pulumi-resource-command"):
        if name in wanted:
            _place(bin_dir / name, wanted[name])
        else:
            (bin_dir / name).unlink(missing_ok=True)
    return Toolchain(bin_dir / "pulumi", tuple(name for name in wanted if name != "pulumi"))


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Return the numbers of a version as ``pulumi version`` and ``go env GOVERSION`` print it, or None."""
    match = re.match(r"(?:v|go)?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def _place(path: Path, content: Path | str) -> None:
    """Make ``path`` a link to a file, or an executable with this text, at once."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as directory:
        new = Path(directory, path.name)
        if isinstance(content, Path):
            new.symlink_to(content)
        else:
            new.write_text(content)
            new.chmod(0o755)
        new.replace(path)


def _which(name: str, bin_dir: Path) -> Path | None:
    """Find an executable on PATH, but not what an earlier run left in ``bin_dir``."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    others = os.pathsep.join(folder for folder in folders if Path(folder).resolve() != bin_dir.resolve())
    found = shutil.which(name, path=others)
    return Path(found).resolve() if found else None


def _found(bin_dir: Path, progress: Progress) -> Path | None:
    """Return the user's own Pulumi if it works and is recent enough."""
    pulumi = _which("pulumi", bin_dir)
    if pulumi is None:
        return None
    try:
        printed = subprocess.run(
            [pulumi, "version"],
            env=os.environ | {"PULUMI_SKIP_UPDATE_CHECK": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        progress(f"{pulumi} does not work ({error}): leaving it aside")
        return None
    version = parse_version(printed)
    if version is None or version < _OLDEST_USABLE:
        progress(f"{pulumi} is {printed.strip()}, older than {'.'.join(map(str, _OLDEST_USABLE))}: leaving it aside")
        return None
    return pulumi


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base, "user-data-security", VERSION)
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def _making(target: Path) -> Iterator[Path | None]:
    """Give a path to make ``target`` at, or None if it is there; it becomes ``target`` in one step at the end.

    One process makes at a time; the lock ends with its process, and what a killed one left is swept away.
    """
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        for left in target.parent.glob(".making-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as directory:
            new = Path(directory, target.name)
            yield new
            new.rename(target)


def _cached(progress: Progress) -> Path:
    """Return the Pulumi of the cache, fetching or building it first if need be."""
    folder = _cache() / "pulumi"
    if not folder.exists():
        with _making(folder) as new:
            if new is not None and not _fetch(new, progress):
                progress(f"building Pulumi {VERSION} from its Go module: 3 to 10 minutes, this once")
                new.mkdir()
                _go_build(_CLI_PACKAGE, new / "pulumi")
    return folder / "pulumi"


def _fetch(folder: Path, progress: Progress) -> bool:
    """Fetch the official release into ``folder``; False where it can't be had."""
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        return False
    url = f"{_RELEASES}/pulumi-v{VERSION}-linux-{architecture}.tar.gz"
    unpacked = folder.parent / "unpacked"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310 - a constant https address
            progress(f"fetching Pulumi {VERSION}")
            with tarfile.open(fileobj=response, mode="r|gz") as archive:
                archive.extractall(unpacked, filter="data")
    except (OSError, tarfile.TarError) as error:
        progress(f"Pulumi's own release can't be fetched ({error})")
        return False
    (unpacked / "pulumi").rename(folder)
    return True


def _command_plugin_installed() -> bool:
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    return any(path.is_dir() for path in home.glob("plugins/resource-command-v*"))


def _releases_reachable() -> bool:
    """Tell whether Pulumi could download a plugin by itself."""
    request = urllib.request.Request(_RELEASES, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT):  # noqa: S310 - likewise
            return True
    except urllib.error.HTTPError:
        return True  # an answer all the same
    except OSError:
        return False


def _command_plugin(progress: Progress) -> Path:
    """Return the stand-in for the command plugin, built from the sources as they are now."""
    plugin = _cache() / f"pulumi-resource-command-{_digest_of_sources()}"
    if not plugin.exists():
        with _making(plugin) as new:
            if new is not None:
                progress("building the rehearsal's command plugin")
                _go_build(_PLUGIN_PACKAGE, new)
    return plugin


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    sources = [_MODULE / "go.mod", _MODULE / "go.sum", *_MODULE.glob("cmd/**/*.go")]
    for source in sorted(source for source in sources if not source.name.endswith("_test.go")):
        digest.update(f"{source.relative_to(_MODULE)}\0{source.stat().st_size}\0".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _go_build(package: str, output: Path) -> None:
    flags = f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{VERSION}"
    done = subprocess.run(
        [_go(), "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(output), package],
        cwd=_MODULE,
        env=os.environ | {"CGO_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolchainError(f"go build {package} failed:\n{done.stdout[-4000:]}")


def _go() -> str:
    """Return a Go that can build the module."""
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    needed = needed_go()
    if go is not None:
        answer = subprocess.run([go, "env", "GOVERSION", "GOTOOLCHAIN"], capture_output=True, text=True, check=False)
        version, _, policy = answer.stdout.partition("\n")
        # From 1.21 on, Go fetches a newer one of itself where it may.
        has = parse_version(version) or (0, 0, 0)
        if has >= needed or (has >= (1, 21, 0) and policy.strip() != "local"):
            return go
        found = f"{go} is {version or 'not working'}"
    else:
        found = "there is no Go on this machine"
    raise ToolchainError(
        f"Pulumi is not installed, its release could not be fetched, and {found}, so it can't be built: install Pulumi "
        "(https://www.pulumi.com/docs/iac/download-install/) or Go "
        f"{'.'.join(map(str, needed))} or newer (https://go.dev/dl/)"
    )


def needed_go() -> tuple[int, int, int]:
    """Return the Go version that the module asks for."""
    match = re.search(r"^go (\S+)$", (_MODULE / "go.mod").read_text(), re.MULTILINE)
    version = parse_version(match[1]) if match else None
    if version is None:
        raise ToolchainError(f"{_MODULE / 'go.mod'} names no Go version")
    return version
