"""How soon after a login its alert is there."""

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rehearsal.bench.clock import run
from rehearsal.bench.figures import Figure
from rehearsal.realm import Realm
from rehearsal.sinks import Sinks
from rehearsal.workspace import PROJECT_FOLDER, Workspace
from uds import admin, ssh
from uds.stack import OperatorError, Stack

LOGINS = 20
PERSON = "bench"


def latency(stack: Stack, up: Callable[[], None]) -> list[Figure]:
    """From the moment that somebody calls sshd until the alert of their login is in the mail server."""
    workspace = Workspace(stack.name)
    realm = Realm.open(workspace.folder)
    with tempfile.TemporaryDirectory() as name, Sinks(realm.operator_v4) as sinks:
        key = Path(name) / "key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], PROJECT_FOLDER, os.environ)
        admin.add(stack, PERSON, [key.with_suffix(".pub").read_text()], secrets.token_urlsafe(12) + "aA1!")
        workspace.set_section("alerts", sinks.settings())
        up()
        # By key alone: a code works once in half a minute.
        rule = f"Match User {PERSON}\nAuthenticationMethods publickey\nMatch all\n"
        write = "cat > /etc/ssh/sshd_config.d/00-bench.conf && systemctl restart ssh"
        realm.power.exec(realm.machine(f"{stack.name}-app-1").number, ["sh", "-c", write], stdin=rule)
        options = (f"User {PERSON}", f"IdentityFile {key}", "IdentitiesOnly yes", "IdentityAgent none")
        config = ssh.write_config(Path(name), stack.outputs(), *options)
        took = []
        for number in range(LOGINS):
            begun = time.monotonic()
            run(["ssh", "-F", str(config), "app-1", "true"], PROJECT_FOLDER, os.environ)
            while len(told := sinks.of("email", f"SSH login: {PERSON}")) <= number:
                if time.monotonic() > begun + 60:
                    raise OperatorError(f"{stack.name}: no alert came of a login")
                time.sleep(0.01)
            took.append(told[number].moment - begun)
    return [Figure(f"login to mail (median of {LOGINS})", statistics.median(took), "s", "0.5 s")]
