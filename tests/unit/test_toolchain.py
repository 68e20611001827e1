"""Where Pulumi comes from, and which stand-ins a rehearsal gets."""

import re
import sys
import threading
import time
from pathlib import Path

import pytest

from rehearsal import toolchain
from rehearsal.toolchain import ToolchainError


class Machine:
    """Folders in place of the user's own, and no network and no Go unless a test gives them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = root / "workspace" / "bin"
        self.path = root / "path"
        self.path.mkdir()
        self.home = root / "pulumi-home"
        self.cache = root / "cache" / "user-data-security" / toolchain.VERSION
        self.built: list[str] = []
        self.told: list[str] = []
        monkeypatch.setenv("PATH", f"{self.bin}:{self.path}:/usr/bin:/bin")
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        monkeypatch.setenv("PULUMI_HOME", str(self.home))
        monkeypatch.setattr(toolchain, "_fetch", lambda *_: False)
        monkeypatch.setattr(toolchain, "_releases_reachable", lambda: False)
        monkeypatch.setattr(toolchain, "_go_build", self._build)

    def _build(self, package: str, output: Path) -> None:
        self.built.append(package)
        output.write_text("built")

    def install(self, name: str, prints: str = "") -> Path:
        executable = self.path / name
        executable.write_text(f"#!/bin/sh\necho '{prints}'\n")
        executable.chmod(0o755)
        return executable

    def ensure(self) -> tuple[str, ...]:
        return toolchain.ensure(self.bin, self.told.append).stand_ins


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


ALL = ("pulumi-language-python", "pulumi-resource-command")


def test_with_nothing_there_everything_is_built_once(machine: Machine) -> None:
    assert machine.ensure() == ALL
    assert (machine.bin / "pulumi").read_text() == "built"
    assert machine.ensure() == ALL
    assert len(machine.built) == 2


def test_the_wrapper_runs_the_language_host_with_this_interpreter(machine: Machine) -> None:
    machine.ensure()
    wrapper = machine.bin / "pulumi-language-python"
    assert f"exec '{sys.executable}' -P -m rehearsal.language_host" in wrapper.read_text()
    assert wrapper.stat().st_mode & 0o111


def test_a_recent_pulumi_with_its_language_host_needs_no_stand_in(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = machine.install("pulumi", "v3.229.0")
    machine.install("pulumi-language-python")
    monkeypatch.setattr(toolchain, "_releases_reachable", lambda: True)
    assert machine.ensure() == ()
    assert (machine.bin / "pulumi").resolve() == own
    assert machine.built == []


def test_the_command_plugin_stands_in_where_pulumi_could_not_download_it(machine: Machine) -> None:
    machine.install("pulumi", "v3.300.1")
    machine.install("pulumi-language-python")
    assert machine.ensure() == ("pulumi-resource-command",)


def test_an_installed_command_plugin_is_used_and_stale_stand_ins_go(machine: Machine) -> None:
    machine.ensure()
    assert (machine.bin / "pulumi-resource-command").exists()
    (machine.home / "plugins" / "resource-command-v1.2.1").mkdir(parents=True)
    other = machine.bin / "pulumi-resource-linode"
    other.touch()
    assert machine.ensure() == ("pulumi-language-python",)
    assert not (machine.bin / "pulumi-resource-command").exists()
    assert other.exists(), "it is not ours"


@pytest.mark.parametrize("prints", ["v3.228.9", "v2.300.0", "nonsense"])
def test_an_old_pulumi_is_left_aside(machine: Machine, prints: str) -> None:
    machine.install("pulumi", prints)
    machine.ensure()
    assert (machine.bin / "pulumi").read_text() == "built"
    assert prints in machine.told[0]


def test_a_broken_pulumi_is_left_aside(machine: Machine) -> None:
    machine.install("pulumi").write_text("#!/bin/sh\nexit 1\n")
    machine.ensure()
    assert (machine.bin / "pulumi").read_text() == "built"


def test_a_failed_build_leaves_nothing_behind(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str, output: Path) -> None:
        output.write_text("half")
        raise ToolchainError("no")

    monkeypatch.setattr(toolchain, "_go_build", fail)
    with pytest.raises(ToolchainError):
        machine.ensure()
    assert [entry.name for entry in machine.cache.iterdir()] == ["lock"]


def test_what_a_killed_run_left_is_swept_away(machine: Machine) -> None:
    left = machine.cache / ".making-killed"
    left.mkdir(parents=True)
    (left / "half").touch()
    machine.ensure()
    assert not left.exists()


def test_two_at_once_build_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(package: str, output: Path) -> None:
        time.sleep(0.2)
        machine._build(package, output)

    monkeypatch.setattr(toolchain, "_go_build", slow)
    threads = [threading.Thread(target=machine.ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.built) == 2  # Pulumi and the plugin, once each


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v3.274.1\n", (3, 274, 1)),
        ("3.230.0-alpha.1", (3, 230, 0)),
        ("go1.26.8", (1, 26, 8)),
        ("go1.26", (1, 26, 0)),
        ("none", None),
    ],
)
def test_versions(text: str, version: tuple[int, int, int] | None) -> None:
    assert toolchain.parse_version(text) == version


def test_without_go_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    needed = ".".join(map(str, toolchain.needed_go()))
    with pytest.raises(ToolchainError, match=f"install Pulumi .* or Go {re.escape(needed)}"):
        toolchain._go()


@pytest.mark.parametrize(
    ("version", "policy", "good"),
    [
        ("go1.99.0", "local", True),
        ("go1.21.0", "auto", True),
        ("go1.25.0", "local", False),
        ("go1.20.0", "auto", False),
    ],
)
def test_go_is_recent_enough_or_may_fetch_one(machine: Machine, version: str, policy: str, good: bool) -> None:
    machine.install("go", f"{version}\n{policy}")
    if good:
        assert toolchain._go() == str(machine.path / "go")
    else:
        with pytest.raises(ToolchainError, match=re.escape(f"go is {version}")):
            toolchain._go()


def test_the_module_builds_the_version_that_is_fetched() -> None:
    module = Path(toolchain.__file__).parent / "toolchain" / "go.mod"
    assert f"github.com/pulumi/pulumi/pkg/v3 v{toolchain.VERSION}" in module.read_text()
