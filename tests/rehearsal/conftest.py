"""A rehearsal for the tests: brought up once by the same driver as `make up`, in a folder of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.settings import PROJECT
from rehearsal.realm import Realm
from rehearsal.workspace import Workspace
from uds.ssh import agent, write_config
from uds.stack import Stack

ROOT = Path(__file__).parents[2]
PASSWORD = "Gr8-Wombat!Kite"


@dataclass
class Rehearsal:
    """One rehearsal of the stack `local`, driven from outside as a person drives it."""

    folder: Path
    """UDS_REHEARSALS: what the driver takes for the place of all rehearsals."""
    _contexts: ExitStack = field(default_factory=ExitStack)
    _ssh_config: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "UDS_REHEARSALS": str(self.folder)}

    @property
    def workspace(self) -> Path:
        return self.folder / "local"

    def make(self, verb: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What `make VERB ARGS=...` runs."""
        command = [sys.executable, "-m", "rehearsal", verb, "local", *(["--", *arguments] if arguments else [])]
        return self._run(command, check=check)

    def uds(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """`uv run uds ARGUMENTS`."""
        return self._run([sys.executable, "-m", "uds", *arguments], stdin=stdin, check=check)

    def stack(self) -> Stack:
        """The stack with its secrets."""
        workspace = Workspace("local")
        assert workspace.folder == self.workspace, "the test process must have UDS_REHEARSALS set"
        return Stack("local", workspace.folder, workspace.folder / "keys", workspace.environment())

    def pulumi(self, *arguments: str) -> str:
        return self.stack().pulumi(*arguments)

    def outputs(self) -> dict[str, Any]:
        return self.stack().outputs()

    def configure(self, key: str, values: Mapping[str, object]) -> None:
        """Change one object of the configuration, as somebody who edits the stack file does."""
        Workspace("local").set_section(key, values)

    def configuration(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(Workspace("local").stack_file.read_text())["config"]
        return {key.removeprefix(f"{PROJECT}:"): value for key, value in config.items()}

    def realm(self) -> Realm:
        return Realm.open(self.workspace)

    def ssh(
        self, server: str, *command: str, stdin: str = "", check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A command as `deploy`, by the same configuration that `uds ssh` uses, but without its start-up time."""
        if self._ssh_config is None:
            folder = Path(self._contexts.enter_context(tempfile.TemporaryDirectory()))
            socket = self._contexts.enter_context(agent(self.stack().section("deploy")["privateKey"], folder))
            self._ssh_config = write_config(folder, self.outputs(), f"IdentityAgent {socket}")
        return self._run(
            ["ssh", "-F", str(self._ssh_config), server, *command], stdin=stdin, check=check, timeout=timeout
        )

    def sudo(self, server: str, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell script as root, over SSH and with the sudo password, as the automation does."""
        password = self.stack().section("deploy")["sudoPassword"]
        return self.ssh(server, "sudo -k -S -p '' -- bash -s", stdin=f"{password}\n{script}\n", check=check)

    def close(self) -> None:
        self._contexts.close()

    def forget_host_keys(self) -> None:
        """Servers were added or replaced: the next `ssh` asks the outputs again."""
        self._contexts.close()
        self._ssh_config = None

    def _run(
        self, command: Sequence[str], *, stdin: str = "", check: bool, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


def new_rehearsal(folder: Path, monkeypatch: pytest.MonkeyPatch, *, backups: bool = False) -> Iterator[Rehearsal]:
    """A rehearsal that isn't up yet; whatever the test did, nothing of it is left afterwards.

    Only with `backups` it has the third server, which most tests don't need.
    """
    monkeypatch.setenv("UDS_REHEARSALS", str(folder))
    rehearsal = Rehearsal(folder)
    Workspace("local").prepare()
    rehearsal.configure("backup", {"server": backups})
    try:
        yield rehearsal
    finally:
        rehearsal.close()
        rehearsal.make("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_monkeypatch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory, session_monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    """The stack with one admin, up and ready; shared by the tests that leave it as they found it."""
    assert os.geteuid() == 0, "the rehearsal's machines need root: run the tests as root or with sudo"
    for rehearsal in new_rehearsal(tmp_path_factory.mktemp("rehearsals"), session_monkeypatch):
        rehearsal.make("up")
        yield rehearsal


@pytest.fixture(scope="module")
def up_with_backups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """As `up`, with the backup server; of a test file's own, which then doesn't use `up`."""
    with pytest.MonkeyPatch.context() as patch:
        for rehearsal in new_rehearsal(tmp_path_factory.mktemp("rehearsals"), patch, backups=True):
            rehearsal.make("up")
            yield rehearsal


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    """A rehearsal of the test's own, with nothing started, for what would spoil the shared one."""
    yield from new_rehearsal(tmp_path / "rehearsals", monkeypatch)
