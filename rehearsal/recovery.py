"""After a kill: what the last run left half done, set right before the next one.

In production a person does the same by hand (see docs/operations.md): a real cloud can't know which of its machines
Pulumi forgot.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from rehearsal.realm import Realm
from uds.stack import Stack


def recover(stack: Stack, realm: Realm, progress: Callable[[str], None]) -> None:
    """Open the lock of a run that is dead, and remove what the cloud has but Pulumi doesn't know of."""
    for lock in (stack.folder / "state").glob(f".pulumi/locks/**/{stack.name}/*.json"):
        if not _alive(lock):
            progress("unlocking the stack: the run that held it was killed")
            lock.unlink(missing_ok=True)
    state = json.loads(stack.pulumi("stack", "export"))["deployment"] or {}
    known = {resource["id"] for resource in state.get("resources", []) if "id" in resource}
    for what in realm.remove_unknown(known):
        progress(f"removed {what}: the run that made it was killed before Pulumi knew of it")


def _alive(lock: Path) -> bool:
    try:
        os.kill(int(json.loads(lock.read_text())["pid"]), 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
    return True
