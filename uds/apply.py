"""`uds apply`: a capability's script once more, to mend what somebody changed on a server. Pulumi can't see that."""

import json
import re
from typing import Any

from uds import ssh
from uds.stack import OperatorError, Stack

_COMMAND = "command:remote:Command"

# `app-1-hardening-apply`: a server's name ends with its number.
_NAME = re.compile(r"(?P<server>[a-z]+-\d+)-(?P<capability>.+)-apply")

# How Pulumi marks a secret in an exported state.
_SIGNATURE = "4dabf18193072939515e22adb298388d"


def run(stack: Stack, server: str, capability: str) -> int:
    """Run what the last `pulumi up` ran for `capability` on `server`, and return its exit status.

    It prints what it changes, and nothing where nothing was wrong.

    Raises:
        OperatorError: the server has no such capability.
    """
    found = scripts(stack).get(server, {})
    if capability not in found:
        raise OperatorError(f"{server} has no {capability}. It has: {', '.join(sorted(found)) or 'nothing'}.")
    inputs = found[capability]
    return ssh.pipe(stack, server, plain(inputs["create"]), plain(inputs["stdin"]))


def scripts(stack: Stack) -> dict[str, dict[str, dict[str, Any]]]:
    """The inputs of the scripts that the last `pulumi up` applied: server -> capability -> inputs."""
    # With the secrets, which a script's standard input is; it is held in memory only.
    state = json.loads(stack.pulumi("stack", "export", "--show-secrets"))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for resource in state["deployment"].get("resources", []):
        name = _NAME.fullmatch(resource["urn"].rpartition("::")[2])
        if resource["type"] == _COMMAND and name:
            found.setdefault(name["server"], {})[name["capability"]] = resource["inputs"]
    return found


def plain(value: Any) -> str:  # noqa: ANN401 - a value of the state, JSON
    """The text of an input, secret or not."""
    if isinstance(value, dict) and _SIGNATURE in value:
        value = json.loads(value["plaintext"])
    return str(value)
