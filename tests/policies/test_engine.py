"""The pack in the real engine: what `make preview` says of a good program, and of ten with a fault each."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rehearsal.workspace import Workspace
from tests.rehearsal.support import Project

STACK = "linode"


@dataclass(frozen=True)
class Preview:
    """Previews of a copy of the project: its files can be changed."""

    project: Project
    arguments: tuple[str, ...] = ()

    def run(self) -> subprocess.CompletedProcess[str]:
        workspace = Workspace(STACK)
        return subprocess.run(
            [
                "pulumi",
                "preview",
                "--stack",
                STACK,
                "--policy-pack",
                str(self.project.folder / "policies"),
                *self.arguments,
            ],
            cwd=workspace.folder,
            env=workspace.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preview]:
    """A preview of the committed program, which has passed."""
    folder = tmp_path_factory.mktemp("engine")
    project = Project.copied(folder / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDS_REHEARSALS", str(folder / "rehearsals"))
        done = project.drive("preview", STACK)
        assert done.returncode == 0, done.stdout + done.stderr
        # It was asked, and had nothing mandatory to say.
        assert "user-data-security@" in done.stdout
        assert "[mandatory]" not in done.stdout
        assert set(re.findall(r"\[advisory\] \[severity: \w+\]\s+(\S+)", done.stdout)) == {"checks-undecided"}
        yield Preview(project)


# A file of the project, what is in it, what a careless change makes of that, and who notices.
FAULTS = [
    ("components/clouds/linode.py", "            firewall_id=firewall.id.apply(int),\n", "", "server-without-firewall"),
    ("components/clouds/linode.py", "=CLOUD_INBOUND_POLICY", '="ACCEPT"', "inbound-default-accept"),
    (
        "components/clouds/linode.py",
        "            interfaces=[",
        "            root_pass='Gr8-Wombat!Kite',\n            interfaces=[",
        "root-password",
    ),
    (
        "components/db_server.py",
        'apps, "database',
        '(IPv4Network("0.0.0.0/0"),), "database',
        "database-port-open-to-world",
    ),
    ("components/db_server.py", "protect=True", "protect=False", "database-server-not-protected"),
    (
        "cloud-init/files/etc/ssh/sshd_config.d/00-hardening.conf.j2",
        "PasswordAuthentication no",
        "PasswordAuthentication yes",
        "ssh-passwords",
    ),
    (
        "cloud-init/files/etc/sudoers.d/10-hardening",
        "Defaults use_pty",
        "deploy ALL=(ALL) NOPASSWD: ALL",
        "sudo-without-password",
    ),
    ("components/cloud_init.py", '    "unattended-upgrades",\n', "", "no-security-updates"),
    ("components/remote.py", '    "exec sudo ', '    "export TOKEN=Wombat8Kite; exec sudo ', "secret-in-command"),
]


@pytest.mark.parametrize(("file", "right", "wrong", "policy"), FAULTS, ids=[fault[-1] for fault in FAULTS])
def test_a_fault_fails_the_preview_and_names_the_policy(
    preview: Preview, file: str, right: str, wrong: str, policy: str
) -> None:
    path = preview.project.folder / file
    before = path.read_text()
    assert right in before
    path.write_text(before.replace(right, wrong))
    try:
        done = preview.run()
    finally:
        path.write_text(before)
    assert_refused(done, policy)


def test_a_fault_in_the_configuration_fails_the_preview_too(preview: Preview) -> None:
    file = Workspace(STACK).stack_file
    before = file.read_text()
    Workspace(STACK).set_section("ssh", {"allowAnywhere": True, "allowedSources": ["0.0.0.0/0"]})
    try:
        done = preview.run()
    finally:
        file.write_text(before)
    assert_refused(done, "ssh-open-to-world")


def assert_refused(done: subprocess.CompletedProcess[str], policy: str) -> None:
    assert done.returncode != 0
    assert re.search(rf"\[mandatory\] \[severity: \w+\]\s+{policy} ", done.stdout), done.stdout + done.stderr


def test_exceptions_and_their_reasons_are_printed(preview: Preview, tmp_path: Path) -> None:
    path = preview.project.folder / "components/db_server.py"
    before = path.read_text()
    path.write_text(before.replace("protect=True", "protect=False"))
    reason = "a scratch database, made anew every night"
    config = tmp_path / "config.json"
    config.write_text(f'{{"database-server-not-protected": {{"exceptions": {{"db-1-instance": "{reason}"}}}}}}')
    try:
        done = Preview(preview.project, ("--policy-pack-config", str(config))).run()
    finally:
        path.write_text(before)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"database-server-not-protected, because {reason}: db-1-instance" in done.stdout
