"""What tests of whole runs have in common: the stack as its state has it, runs to interrupt, a copy of the project."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rehearsal.realm import Realm
from tests.rehearsal.conftest import ROOT, Rehearsal


def resources(rehearsal: Rehearsal) -> dict[str, dict[str, Any]]:
    """The resources of the stack by name, with their secrets."""
    state = json.loads(rehearsal.pulumi("stack", "export", "--show-secrets"))["deployment"]
    return {resource["urn"].rpartition("::")[2]: resource for resource in state.get("resources") or []}


def secret(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A value of `resources`, whether it is kept as a secret or not."""
    return json.loads(value["plaintext"]) if isinstance(value, dict) and "plaintext" in value else value


@dataclass(frozen=True)
class Script:
    """What the stack applies on a server, as its state has it: run again as `uds apply` does, or altered before."""

    server: str
    command: str
    stdin: str

    @classmethod
    def of(cls, rehearsal: Rehearsal, server: str, capability: str) -> "Script":
        inputs = resources(rehearsal)[f"{server}-{capability}-apply"]["inputs"]
        return cls(server, str(secret(inputs["create"])), str(secret(inputs["stdin"])))

    def altered(self, path: str, old: str, new: str) -> "Script":
        """With a text in one of its files replaced, such as `files/etc/issue` or `data/release`."""
        password, _, payload = self.stdin.partition("\n")
        buffer, done = io.BytesIO(), False
        with (
            tarfile.open(fileobj=io.BytesIO(base64.b64decode(payload))) as before,
            tarfile.open(fileobj=buffer, mode="w") as after,
        ):
            for member in before:
                file = before.extractfile(member)
                assert file is not None, f"{member.name} is no file"
                content = file.read()
                if member.name == path:
                    done = old.encode() in content
                    content = content.replace(old.encode(), new.encode())
                    member.size = len(content)
                after.addfile(member, io.BytesIO(content))
        assert done, f"{path} has no {old!r}"
        return replace(self, stdin=f"{password}\n{base64.encodebytes(buffer.getvalue()).decode()}")

    def run(self, rehearsal: Rehearsal, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return rehearsal.ssh(self.server, self.command, stdin=self.stdin, check=check)


def changed(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> set[str]:
    """The names of resources that were made, removed, replaced or got other inputs."""
    told = {
        name
        for name in before.keys() & after.keys()
        if any(before[name].get(key) != after[name].get(key) for key in ("id", "inputs"))
    }
    # Outputs of the whole stack are the stack resource's own.
    return {name for name in told | (before.keys() ^ after.keys()) if not name.endswith("-local")}


def boots(realm: Realm) -> dict[str, str]:
    """Each machine and when it last booted: the same text means the same machine, never rebooted."""
    shown = {}
    for machine in realm.machines():
        name = realm.network.namespace(machine.number)
        done = realm.power.podman("inspect", "--format", "{{.Id}} {{.State.Pid}} {{.State.StartedAt}}", name)
        shown[machine.label] = done.stdout.strip()
    return shown


def contents(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, bytes | str]:
    """Every file below `folder`, and what is in it."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if "__pycache__" in relative.parts or relative.parts[0] in leave_out:
            continue
        if path.is_symlink():
            found[str(relative)] = str(path.readlink())
        elif path.is_file():
            found[str(relative)] = path.read_bytes()
    return found


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)


@dataclass
class Run:
    """A command that runs in the background, in a process group of its own."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, rehearsal: Rehearsal, verb: str) -> "Run":
        return cls.start(["rehearsal", verb, rehearsal.name], rehearsal.environment)

    @classmethod
    def start(cls, module: Sequence[str], environment: Mapping[str, str]) -> "Run":
        """`python -m MODULE...`."""
        run = cls(
            subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        threading.Thread(target=run._read, daemon=True).start()
        return run

    @property
    def text(self) -> str:
        return "".join(self.output)

    def wait_for(self, words: str, seconds: float = 120) -> None:
        """Wait until it prints these words."""
        until(lambda: words in self.text or self.process.poll() is not None, seconds)
        assert words in self.text, f"it ended without {words!r}\n{self.text}"

    def end(self, how: signal.Signals, *, alone: bool = False) -> None:
        """Send every process of the group a signal, as a terminal does, or this one `alone`, as `kill`; and wait."""
        (os.kill if alone else os.killpg)(self.process.pid, how)
        self.process.wait(120)

    def _read(self) -> None:
        if self.process.stdout:
            self.output.extend(self.process.stdout)


@dataclass(frozen=True)
class Project:
    """A copy of the project's committed files, for what would otherwise change the real ones."""

    folder: Path

    @classmethod
    def copied(cls, folder: Path) -> "Project":
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).exists():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        (folder / ".venv").symlink_to(Path(sys.prefix))
        return cls(folder)

    def drive(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`python -m rehearsal ARGUMENTS` of this copy."""
        return subprocess.run(
            [sys.executable, "-m", "rehearsal", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
