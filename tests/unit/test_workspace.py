"""A rehearsal's folder: what comes from the committed files, what is its own, and what never gets into it."""

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.settings import PROJECT
from rehearsal import workspace as module
from rehearsal.aws.endpoints import operator_file
from rehearsal.workspace import Workspace, merged, rehearsed_only, without_secrets

SECRET = {"secure": "v1:abc"}
COMMITTED: dict[str, Any] = {
    "secretsprovider": "awskms://production",
    "encryptionsalt": "v1:production",
    "config": {
        "aws:secretKey": SECRET,
        f"{PROJECT}:cloud": "linode",
        f"{PROJECT}:app": {"count": 3, "token": SECRET},
        f"{PROJECT}:ssh": {"allowedSources": ["198.51.100.7/32"]},
        f"{PROJECT}:deploy": {"publicKey": "ssh-ed25519 AAAA", "privateKey": SECRET},
        f"{PROJECT}:admins": {"alice": {"publicKeys": ["ssh-ed25519 BBBB"], "scratchCodes": [SECRET, SECRET]}},
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Pulumi.yaml").write_text("name: test\nruntime: {name: python}\n")
    (folder / "Pulumi.prod.yaml").write_text(yaml.safe_dump(COMMITTED))
    monkeypatch.setattr(module, "PROJECT_FOLDER", folder)
    monkeypatch.setenv("UDS_REHEARSALS", str(tmp_path / "rehearsals"))
    return folder


def config_of(workspace: Workspace) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(workspace.stack_file.read_text())["config"]
    return config


@pytest.mark.parametrize(
    ("stack", "only"),
    [("local", True), ("aws-local", True), ("linode", False), ("locale", False)],
)
def test_which_stacks_have_no_production(stack: str, only: bool) -> None:
    assert rehearsed_only(stack) is only


@pytest.mark.parametrize(
    ("committed", "own", "result"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({}, {"b": 2}, {"b": 2}),
        ({"a": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2}),
        ({"s": {"x": 1}}, {"s": {"x": 2, "y": 2}}, {"s": {"x": 1, "y": 2}}),
        ({"s": "text"}, {"s": {"y": 2}}, {"s": "text"}),
        ({"s": {"x": 1}}, {"s": "text"}, {"s": {"x": 1}}),
        ({"l": [1]}, {"l": [2, 3]}, {"l": [1]}),
    ],
)
def test_the_committed_file_wins_and_own_additions_stay(
    committed: dict[str, Any], own: dict[str, Any], result: dict[str, Any]
) -> None:
    assert merged(committed, own) == result


def test_secrets_and_the_accounts_that_they_belong_to_stay_in_production() -> None:
    assert without_secrets(COMMITTED["config"]) == {
        f"{PROJECT}:cloud": "linode",
        f"{PROJECT}:app": {"count": 3},
        f"{PROJECT}:ssh": {"allowedSources": ["198.51.100.7/32"]},
    }
    assert without_secrets({"x": [SECRET, {"y": SECRET, "z": 1}]}) == {"x": [{"z": 1}]}
    # An object of that name that is no secret of Pulumi's.
    assert without_secrets({"x": {"secure": "a", "other": "b"}}) == {"x": {"secure": "a", "other": "b"}}


@pytest.mark.usefixtures("project")
def test_a_workspace_has_nothing_of_productions_encryption() -> None:
    workspace = Workspace("prod")
    workspace.prepare()
    text = workspace.stack_file.read_text()
    assert "production" not in text
    assert "secure" not in text
    assert config_of(workspace)[f"{PROJECT}:app"] == {"count": 3}


def test_preparing_again_takes_over_changes_and_keeps_what_the_rehearsal_added(project: Path) -> None:
    workspace = Workspace("prod")
    workspace.prepare()
    passphrase = workspace.passphrase_file.read_text()
    # As Pulumi and `uds init` write it.
    own = yaml.safe_load(workspace.stack_file.read_text())
    own["encryptionsalt"] = "v1:own"
    own["config"][f"{PROJECT}:deploy"] = {"publicKey": "ssh-ed25519 CCCC", "privateKey": SECRET}
    workspace.stack_file.write_text(yaml.safe_dump(own))
    changed = {**COMMITTED, "config": {**COMMITTED["config"], f"{PROJECT}:app": {"count": 4}}}
    (project / "Pulumi.prod.yaml").write_text(yaml.safe_dump(changed))

    workspace.prepare()
    after = yaml.safe_load(workspace.stack_file.read_text())
    assert after["encryptionsalt"] == "v1:own"
    assert after["config"][f"{PROJECT}:app"] == {"count": 4}
    assert after["config"][f"{PROJECT}:deploy"] == own["config"][f"{PROJECT}:deploy"]
    assert workspace.passphrase_file.read_text() == passphrase
    assert len(passphrase) >= 32


def test_the_committed_files_are_only_read(project: Path) -> None:
    before = {path.name: path.read_bytes() for path in project.iterdir()}
    workspace = Workspace("prod")
    workspace.prepare()
    workspace.set_section("ssh", {"allowedSources": ["198.18.0.1/32"]})
    workspace.remove()
    assert {path.name: path.read_bytes() for path in project.iterdir()} == before
    assert not workspace.folder.exists()


def test_pulumi_in_the_workspace_runs_the_projects_program(project: Path) -> None:
    workspace = Workspace("prod")
    workspace.prepare()
    copied = yaml.safe_load((workspace.folder / "Pulumi.yaml").read_text())
    assert (copied["name"], copied["main"]) == ("test", str(project))
    # Nothing that would install or check anything there.
    assert copied["runtime"] == {"name": "python", "options": {"virtualenv": str(project / ".venv")}}


@pytest.mark.usefixtures("project")
def test_addresses_of_the_rehearsal_replace_productions_in_the_copy_only() -> None:
    workspace = Workspace("prod")
    workspace.prepare()
    workspace.set_section("ssh", {"allowedSources": ["198.18.0.1/32"]})
    workspace.set_section("network", {"cidr": "10.9.0.0/24"})
    assert config_of(workspace)[f"{PROJECT}:ssh"] == {"allowedSources": ["198.18.0.1/32"]}
    assert config_of(workspace)[f"{PROJECT}:network"] == {"cidr": "10.9.0.0/24"}
    assert config_of(workspace)[f"{PROJECT}:app"] == {"count": 3}


@pytest.mark.usefixtures("project")
def test_nobody_else_can_read_a_workspace() -> None:
    workspace = Workspace("prod")
    workspace.prepare()
    assert stat.S_IMODE(workspace.folder.stat().st_mode) == 0o700
    files = [path for path in workspace.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"Pulumi.yaml", "Pulumi.prod.yaml", "passphrase"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.usefixtures("project")
def test_a_file_is_replaced_whole() -> None:
    workspace = Workspace("prod")
    workspace.prepare()
    with workspace.stack_file.open() as reader:
        first = reader.read(10)
        workspace.set_section("app", {"count": 9})
        # Who reads the old one goes on reading the old one.
        assert yaml.safe_load(first + reader.read())["config"][f"{PROJECT}:app"] == {"count": 3}


@pytest.mark.usefixtures("project")
def test_the_environment_has_nothing_of_productions(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = "PULUMI_ACCESS_TOKEN PULUMI_CONFIG_PASSPHRASE PULUMI_BACKEND_URL LINODE_TOKEN AWS_PROFILE SSH_AUTH_SOCK"
    for name in hidden.split():
        monkeypatch.setenv(name, "production's")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("PATH", "/usr/bin")
    workspace = Workspace("prod")
    environment = workspace.environment()
    assert "production's" not in environment.values()
    assert environment["LANG"] == "C.UTF-8"
    assert environment["PATH"] == f"{workspace.folder}/bin:/usr/bin"
    assert environment["PULUMI_BACKEND_URL"] == f"file://{workspace.folder}/state?metadata=skip"
    assert environment["PULUMI_CONFIG_PASSPHRASE_FILE"] == str(workspace.passphrase_file)
    assert environment["UDS_REHEARSAL"] == str(workspace.folder)
    # Where there is a bucket, what reaches it is the rehearsal's.
    file = operator_file(workspace.folder)
    file.parent.mkdir(parents=True)
    file.write_text('{"AWS_ACCESS_KEY_ID": "throw-away"}')
    found = workspace.environment()
    assert found["AWS_ACCESS_KEY_ID"] == "throw-away"
    assert "AWS_PROFILE" not in found


@pytest.mark.usefixtures("project")
def test_there_is_no_rehearsal_of_a_stack_without_a_file() -> None:
    Workspace("prod").check()
    with pytest.raises(FileNotFoundError):
        Workspace("nothing").check()
    assert not Workspace("prod").exists()
    Workspace("prod").prepare()
    assert Workspace("prod").exists()
