"""`uds apply`: a capability's script once more, to mend what somebody changed on a server. Pulumi can't see that."""

import json
from typing import Any

from uds import ssh
from uds.stack import OperatorError, Stack

_COMMAND = "command:remote:Command"

# How Pulumi marks a secret in an exported state.
_SIGNATURE = "4dabf18193072939515e22adb298388d"


def run(stack: Stack, server: str, capability: str) -> int:
    """Run what the last `pulumi up` ran for `capability` on `server`, and return its exit status.

    It prints what it changes, and nothing where nothing was wrong.

    Raises:
        OperatorError: the server has no such capability.
    """
    scripts = _scripts(stack, server)
    if capability not in scripts:
        raise OperatorError(f"{server} has no {capability}. It has: {', '.join(sorted(scripts)) or 'nothing'}.")
    inputs = scripts[capability]
    return ssh.pipe(stack, server, _plain(inputs["create"]), _plain(inputs["stdin"]))


def _scripts(stack: Stack, server: str) -> dict[str, dict[str, Any]]:
    """The inputs of the server's scripts, by capability."""
    # With the secrets, which a script's standard input is; it is held in memory only.
    state = json.loads(stack.pulumi("stack", "export", "--show-secrets"))
    found = {}
    for resource in state["deployment"].get("resources", []):
        name = resource["urn"].rpartition("::")[2]
        if resource["type"] == _COMMAND and name.startswith(f"{server}-") and name.endswith("-apply"):
            found[name.removeprefix(f"{server}-").removesuffix("-apply")] = resource["inputs"]
    return found


def _plain(value: Any) -> str:  # noqa: ANN401 - a value of the state, JSON
    if isinstance(value, dict) and _SIGNATURE in value:
        value = json.loads(value["plaintext"])
    return str(value)
