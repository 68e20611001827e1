"""What is written into a rehearsal's configuration without Pulumi, the real Pulumi reads."""

from pathlib import Path

import pytest
import yaml

from rehearsal import toolchain
from rehearsal.first_keys import FirstKeys
from rehearsal.workspace import Workspace
from uds.stack import Stack

KEY = '-----BEGIN KEY-----\nümläut: "quoted"\n-----END KEY-----\n'


def test_pulumi_reads_the_first_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDS_REHEARSALS", str(tmp_path))
    workspace = Workspace("local")
    workspace.prepare()
    toolchain.ensure(workspace.bin, print)
    keys = FirstKeys.open("local", rehearsal=True)
    keys.pulumi("stack", "select", "--create")
    keys.set("deploy.privateKey", KEY, secret=True)
    keys.set("deploy.publicKey", "public", secret=False)
    keys.set("deploy.sudoPassword", "geheim", secret=True)
    keys.set("backup.recipients[0]", "age1", secret=False)

    stack = Stack.open("local", rehearsal=True)
    assert stack.section("deploy") == {"privateKey": KEY[:-1], "publicKey": "public", "sudoPassword": "geheim"}
    assert stack.section("backup")["recipients"] == ["age1"]
    written = workspace.stack_file.read_text()
    assert "geheim" not in written
    assert "BEGIN KEY" not in written
    # Pulumi's own word on which of them are secrets, and what it writes for one.
    stack.set("deploy.bootstrapSeed", "seed", secret=True)
    deploy = yaml.safe_load(workspace.stack_file.read_text())["config"]["user-data-security:deploy"]
    assert {key: len(value["secure"].split(":")) for key, value in deploy.items() if key != "publicKey"} == {
        "privateKey": 3,
        "sudoPassword": 3,
        "bootstrapSeed": 3,
    }
