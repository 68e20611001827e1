"""Plugins that the language host starts before the engine asks for them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehearsal import plugins
from rehearsal.language_host.early import EarlyPlugins
from tests.rehearsal.support import until

ENGINE = "127.0.0.1:1"
NAME = plugins.executable("linode")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A rehearsal whose plugin tells its own process, and that of each start."""
    plugins.install(tmp_path, "linode")
    plugin = tmp_path / "plugins" / NAME
    plugin.write_text(f'#!/bin/sh\necho "$$ $1" >> {tmp_path}/started\necho 4711\nexec sleep 60\n')
    yield tmp_path
    for line in (tmp_path / "started").read_text().splitlines():
        subprocess.run(["kill", line.split()[0]], check=False, stderr=subprocess.DEVNULL)


def find(workspace: Path, engine: str = ENGINE) -> subprocess.Popen[str]:
    """The plugin as the engine starts it."""
    return subprocess.Popen(
        [workspace / "bin" / NAME, "-v=9", engine],
        env=os.environ | {"UDS_REHEARSAL": str(workspace)},
        stdout=subprocess.PIPE,
        text=True,
    )


def port(plugin: subprocess.Popen[str]) -> str:
    assert plugin.stdout
    return plugin.stdout.readline().strip()


def marks(workspace: Path) -> list[str]:
    return [path.name for path in workspace.glob("early/*")]


def started(workspace: Path) -> list[str]:
    return (workspace / "started").read_text().splitlines()


def is_ended(line: str) -> bool:
    return not Path("/proc", line.split(maxsplit=1)[0]).exists()


def test_the_engine_gets_the_one_that_was_started_early_and_only_once(workspace: Path) -> None:
    early = EarlyPlugins(workspace, ENGINE)
    until(lambda: marks(workspace) == [f"{NAME}@{ENGINE}"])
    first = find(workspace)
    assert port(first) == "4711"
    assert len(started(workspace)) == 1
    second = find(workspace)
    assert port(second) == "4711"
    assert len(started(workspace)) == 2
    assert marks(workspace) == []
    early.end()
    # It has nothing left to stand for.
    assert first.wait(30) == 0
    second.kill()


def test_an_engine_is_not_given_another_ones(workspace: Path) -> None:
    early = EarlyPlugins(workspace, ENGINE)
    until(lambda: marks(workspace))
    other = find(workspace, "127.0.0.1:2")
    assert port(other) == "4711"
    assert len(started(workspace)) == 2
    assert marks(workspace)
    other.kill()
    early.end()


def test_what_nobody_asked_for_ends_with_the_language_host(workspace: Path) -> None:
    early = EarlyPlugins(workspace, ENGINE)
    until((workspace / "started").exists)
    early.end()
    assert marks(workspace) == []
    assert is_ended(started(workspace)[0])


def test_a_plugin_that_is_gone_is_started_again(workspace: Path) -> None:
    early = EarlyPlugins(workspace, ENGINE)
    until(lambda: marks(workspace))
    subprocess.run(["kill", "-9", started(workspace)[0].split()[0]], check=True)
    until(lambda: is_ended(started(workspace)[0]))
    again = find(workspace)
    assert port(again) == "4711"
    assert len(started(workspace)) == 2
    again.kill()
    early.end()


def _is_ended(line: str) -> bool:
    status = Path("/proc", line.split(maxsplit=1)[0], "status")
    return not status.exists() or "State:\tZ" in status.read_text()
