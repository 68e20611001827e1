"""After a kill: what the last run left half done, set right before the next one.

In production a person does the same by hand (see docs/operations.md): a real cloud can't know which of its machines
Pulumi forgot.
"""

import json
from collections.abc import Callable
from pathlib import Path

from rehearsal.realm import Realm
from uds.stack import Stack


def recover(stack: Stack, realm: Realm, progress: Callable[[str], None]) -> None:
    """Open the lock of a dead run, remove what the cloud has but Pulumi doesn't know of, and forget what was begun."""
    for lock in (stack.folder / "state").glob(f".pulumi/locks/**/{stack.name}/*.json"):
        if not _alive(lock):
            progress("unlocking the stack: the run that held it was killed")
            lock.unlink(missing_ok=True)
    # Read from the file: `pulumi stack export` takes half a second of every `make up`.
    (file,) = (stack.folder / "state").glob(f".pulumi/stacks/*/{stack.name}.json")
    state = json.loads(file.read_text())["checkpoint"]["latest"] or {}
    ids = [resource["id"].rpartition("-")[2] for resource in state.get("resources", []) if "id" in resource]
    known = {int(number) for number in ids if number.isdigit()}
    for what in realm.remove_unknown(known):
        progress(f"removed {what}: the run that made it was killed before Pulumi knew of it")
    if state.get("pending_operations"):
        # What they may have made is gone now, and Pulumi would warn of them at every run.
        exported = json.loads(stack.pulumi("stack", "export"))
        del exported["deployment"]["pending_operations"]
        stack.pulumi("stack", "import", stdin=json.dumps(exported))


def _alive(lock: Path) -> bool:
    """Whether the Pulumi that made the lock still runs; not one that is dead and only waits to be noticed (a zombie).

    After a reboot of this host, another program may have its number.
    """
    try:
        stat = Path(f"/proc/{json.loads(lock.read_text())['pid']}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
    name, _, rest = stat.partition("(")[2].rpartition(") ")
    return name == "pulumi" and not rest.startswith("Z")
