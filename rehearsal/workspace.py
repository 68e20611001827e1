"""Where a rehearsal lives: a folder of its own, with copies of the project's files, its secrets and its state.

The committed stack file is only ever read. Its secrets, which belong to production, are left out: a rehearsal has
throw-away ones.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from components.settings import PROJECT
from rehearsal.aws.endpoints import operator_file
from rehearsal.store import write_atomically

# What YAML holds.
Value: TypeAlias = Any

PROJECT_FOLDER = Path(__file__).parent.parent
POLICIES = PROJECT_FOLDER / "policies"

# Whose other half is a secret: accounts and their keys, certificates and theirs, the keys that backups are made for.
_USELESS_BY_HALF = (f"{PROJECT}:deploy", f"{PROJECT}:admins", "certificate", "caCertificate", "publicKey", "recipients")


def rehearsed_only(stack: str) -> bool:
    """Whether the stack has no production: `local` and whatever ends so."""
    return stack == "local" or stack.endswith("-local")


@dataclass(frozen=True)
class Workspace:
    """The folder of one stack's rehearsal."""

    stack: str

    @property
    def folder(self) -> Path:
        """Below the project, unless UDS_REHEARSALS names another place."""
        return Path(os.environ.get("UDS_REHEARSALS") or PROJECT_FOLDER / ".rehearsal").absolute() / self.stack

    @property
    def bin(self) -> Path:
        """The executables that Pulumi is to find first."""
        return self.folder / "bin"

    @property
    def passphrase_file(self) -> Path:
        """Encrypts the rehearsal's secrets, as a passphrase does in production."""
        return self.folder / "passphrase"

    @property
    def stack_file(self) -> Path:
        """The copy of the stack's configuration."""
        return self.folder / f"Pulumi.{self.stack}.yaml"

    def exists(self) -> bool:
        """Whether there is something to work with."""
        return self.stack_file.exists()

    def environment(self) -> dict[str, str]:
        """What Pulumi runs with: the rehearsal's own state, secrets and plugins, and nothing of production's."""
        kept = {
            key: value
            for key, value in os.environ.items()
            # Production's backend and tokens must not reach a rehearsal; a stale agent would fail every connection.
            if not key.startswith(("PULUMI_", "LINODE_", "AWS_")) and key != "SSH_AUTH_SOCK"
        }
        operator = operator_file(self.folder)
        if operator.exists():
            kept |= json.loads(operator.read_text())
        return kept | {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            # The file backend would keep a side file (.attrs) beside each, not written atomically: a kill just then
            # leaves a stack that Pulumi can't read ("failed to load checkpoint: EOF").
            "PULUMI_BACKEND_URL": f"file://{self.folder / 'state'}?metadata=skip",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(self.passphrase_file),
            "PULUMI_SKIP_UPDATE_CHECK": "1",
            # There are none, and looking for them takes longer than pydantic's own import.
            "PYDANTIC_DISABLE_PLUGINS": "__all__",
            "UDS_REHEARSAL": str(self.folder),
        }

    def check(self) -> None:
        """Nothing is started for a stack that doesn't exist.

        Raises:
            FileNotFoundError: the stack has no committed file.
        """
        (PROJECT_FOLDER / f"Pulumi.{self.stack}.yaml").stat()

    def prepare(self) -> None:
        """Make the folder, or bring the committed files' changes into it. What the rehearsal added stays."""
        for folder in (self.folder, self.folder / "state", self.bin):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.passphrase_file.exists():
            write_atomically(self.passphrase_file, secrets.token_urlsafe(32))
        project = yaml.safe_load((PROJECT_FOLDER / "Pulumi.yaml").read_text())
        # The program itself stays where it is, with the environment that it has.
        project["main"] = str(PROJECT_FOLDER)
        project["runtime"] = {"name": "python", "options": {"virtualenv": str(PROJECT_FOLDER / ".venv")}}
        write_atomically(self.folder / "Pulumi.yaml", yaml.safe_dump(project, sort_keys=False))
        committed = yaml.safe_load((PROJECT_FOLDER / f"Pulumi.{self.stack}.yaml").read_text())
        own = yaml.safe_load(self.stack_file.read_text()) if self.exists() else {}
        config = merged(without_secrets(committed.get("config") or {}), own.get("config") or {})
        self._write_config(own, config)

    def remove(self) -> None:
        """Remove the folder: state, configuration and throw-away secrets."""
        shutil.rmtree(self.folder)

    def set_section(self, key: str, values: Mapping[str, object]) -> None:
        """Set plain values of one of the project's objects in the copy."""
        own = yaml.safe_load(self.stack_file.read_text())
        config = own["config"]
        full_key = f"{PROJECT}:{key}"
        config[full_key] = {**(config.get(full_key) or {}), **values}
        self._write_config(own, config)

    def _write_config(self, own: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        write_atomically(self.stack_file, yaml.safe_dump({**own, "config": dict(config)}, sort_keys=False))


def without_secrets(value: Value) -> Value:
    """The configuration less everything that is encrypted, and less what is useless without that."""
    if isinstance(value, Mapping):
        return {
            key: without_secrets(item)
            for key, item in value.items()
            if not _is_secret(item) and key not in _USELESS_BY_HALF
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_secrets(item) for item in value if not _is_secret(item)]
    return value


def merged(committed: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both configurations; where both say something, the committed one is right."""
    result = dict(own)
    for key, value in committed.items():
        mine = own.get(key)
        result[key] = merged(value, mine) if isinstance(value, Mapping) and isinstance(mine, Mapping) else value
    return result


def _is_secret(value: Value) -> bool:
    return isinstance(value, Mapping) and set(value) == {"secure"}
