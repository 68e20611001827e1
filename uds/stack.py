"""A stack as the operator's command sees it: its folder, its Pulumi, its configuration and outputs."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.settings import PROJECT
from rehearsal.workspace import Workspace, rehearsed_only

ROOT = Path(__file__).parent.parent


class OperatorError(Exception):
    """Something that the operator can mend. The message says how."""


@dataclass(frozen=True)
class Stack:
    """A stack and where it lives.

    `folder` holds Pulumi.yaml and the stack file, `keys` what the operator keeps for themselves, and `environment` is
    what Pulumi runs with. `passphrase_file` has the passphrase of a rehearsal's keys.
    """

    name: str
    folder: Path
    keys: Path
    environment: Mapping[str, str]
    passphrase_file: Path | None = field(default=None, kw_only=True)
    _known: dict[bytes, dict[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, name: str, *, rehearsal: bool = False) -> "Stack":
        """The production stack of this name, or its rehearsal.

        Raises:
            OperatorError: there is no such stack.
        """
        if rehearsal or rehearsed_only(name):
            workspace = Workspace(name)
            if not workspace.exists():
                raise OperatorError(f"There is no rehearsal of {name}: start it with `make up STACK={name}`.")
            return cls(
                name,
                workspace.folder,
                workspace.folder / "keys",
                workspace.environment(),
                passphrase_file=workspace.passphrase_file,
            )
        if not (ROOT / f"Pulumi.{name}.yaml").exists():
            known = ", ".join(sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml")))
            raise OperatorError(f"There is no stack {name}: make Pulumi.{name}.yaml first, or use one of {known}.")
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return cls(name, ROOT, home / PROJECT / name, os.environ)

    def pulumi(self, *arguments: str, stdin: str | None = None) -> str:
        """Run Pulumi on this stack and return what it printed.

        Secrets go through `stdin`: arguments can be read by other users of the machine.

        Raises:
            OperatorError: Pulumi isn't installed, or failed; with its own words.
        """
        command = ["pulumi", *arguments, "--stack", self.name, "--non-interactive", "--color", "never"]
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment,
                input=stdin or "",
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise OperatorError("Pulumi isn't installed: see https://www.pulumi.com/docs/install/") from None
        if done.returncode:
            raise OperatorError(f"pulumi {' '.join(arguments[:3])}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def config(self) -> dict[str, str]:
        """The configuration with its secrets, as the program gets it: full key -> text (JSON for objects)."""
        # Pulumi takes half a second for it. Whoever changes something, here or elsewhere, changes one of the files.
        files = b"".join((self.folder / f"Pulumi{name}.yaml").read_bytes() for name in ("", f".{self.name}"))
        if files not in self._known:
            values = json.loads(self.pulumi("config", "--json", "--show-secrets"))
            self._known.clear()
            self._known[files] = {key: entry["value"] for key, entry in values.items() if "value" in entry}
        return dict(self._known[files])

    def section(self, key: str) -> dict[str, Any]:
        """One object of the project's configuration, with its secrets; empty where there is none."""
        text = self.config().get(f"{PROJECT}:{key}")
        section: dict[str, Any] = json.loads(text) if text else {}
        return section

    def set(self, path: str, value: str, *, secret: bool) -> None:
        """Write one value, such as `deploy.sudoPassword`, into the stack file."""
        self.pulumi("config", "set", "--path", path, "--secret" if secret else "--plaintext", stdin=value)

    def remove(self, path: str) -> None:
        """Remove a value, or an object with all below it, from the stack file."""
        self.pulumi("config", "rm", "--path", path)

    def outputs(self) -> dict[str, Any]:
        """What the last `pulumi up` said of the stack.

        Raises:
            OperatorError: there was none.
        """
        outputs: dict[str, Any] = json.loads(self.pulumi("stack", "output", "--json"))
        if "servers" not in outputs:
            raise OperatorError(f"The stack {self.name} has no servers yet: run `pulumi up` (or `make up`) first.")
        return outputs
