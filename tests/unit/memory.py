"""A stack in memory, for what the operator's command does to one."""

import json
from dataclasses import dataclass, field

from tests.unit.support import Config, as_pulumi, put
from uds.stack import OperatorError, Stack

OUTPUTS = {
    "servers": {
        "app-1": {"role": "app", "publicIp": "203.0.113.11", "privateIp": "10.20.0.11", "hostKey": "ssh-ed25519 AAAA1"},
        "app-2": {"role": "app", "publicIp": "203.0.113.12", "privateIp": "10.20.0.12", "hostKey": "ssh-ed25519 AAAA2"},
        "db-1": {"role": "db", "publicIp": "203.0.113.21", "privateIp": "10.20.0.5", "hostKey": "ssh-ed25519 AAAA3"},
    },
    "sshUser": "deploy",
}


@dataclass(frozen=True)
class Memory(Stack):
    """A stack whose Pulumi keeps its configuration in memory, and may break at the n-th change of it."""

    values: Config = field(default_factory=dict)
    encrypted: set[str] = field(default_factory=set)
    arguments: list[str] = field(default_factory=list)
    breaks_at: list[int] = field(default_factory=list)

    def config(self) -> dict[str, str]:
        # By its files a stack knows whether Pulumi must be asked again.
        (self.folder / "Pulumi.yaml").touch()
        (self.folder / f"Pulumi.{self.name}.yaml").write_text(json.dumps(self.values, default=str))
        return super().config()

    def pulumi(self, *arguments: str, stdin: str | None = None) -> str:
        self.arguments.extend(arguments)
        if arguments[1] in ("set", "rm") and self.breaks_at:
            self.breaks_at[0] -= 1
            if self.breaks_at[0] == 0:
                self.breaks_at.clear()
                raise OperatorError("the connection broke")
        match arguments:
            case ("config", "--json", "--show-secrets"):
                return json.dumps({key: {"value": text} for key, text in as_pulumi(self.values).items()})
            case ("config", "set", "--path", path, kind):
                # As Pulumi does: the last line end goes.
                put(self.values, path, (stdin or "").removesuffix("\n"))
                if kind == "--secret":
                    self.encrypted.add(path)
            case ("config", "rm", "--path", path):
                put(self.values, path, None)
            case ("stack", "output", "--json"):
                return json.dumps(OUTPUTS)
            case ("stack", "select", "--create"):
                pass
            case _:
                raise AssertionError(f"unknown to this Pulumi: {arguments}")
        return ""

    @property
    def application(self) -> dict[str, str]:
        section: dict[str, str] = self.values.get("application", {})
        return section
