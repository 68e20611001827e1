"""How long the application is without its data when the database server is lost with its disk."""

import http.client
import json
import ssl
import sys
from collections.abc import Callable

from components.settings import parse
from rehearsal.bench.backups import RESTORE_BYTES, filling
from rehearsal.bench.clock import run, seconds
from rehearsal.bench.figures import Figure
from rehearsal.realm import Realm
from rehearsal.workspace import PROJECT_FOLDER
from uds.backup.places import place_of
from uds.backup.run import now
from uds.backup.servers import DATABASE, Servers
from uds.stack import OperatorError, Stack

NOTE = "written before the loss"
WRITE = f"INSERT INTO demo_notes (text) VALUES ('{NOTE}');"  # noqa: S608 - nobody's words but ours


def database_lost(stack: Stack, drive: Callable[[str], None]) -> list[Figure]:
    """What docs/recovery.md says, typed without a pause, until the application shows again what was written before.

    None where the stack doesn't deliver the demo.
    """
    settings = parse(stack.config())
    application, database = settings.application, settings.database.name
    if application.release != "rehearsal/demo" or application.certificate is None:
        return []
    address = stack.outputs()["servers"]["app-1"]["publicIp"]
    with Servers.of(stack) as servers:
        statements = f"{filling(RESTORE_BYTES)}\n{WRITE}"
        status, text = servers.run(DATABASE, "sh", "-c", f"mariadb {database} <<'END'\n{statements}\nEND")
        if status:
            raise OperatorError(text)
        backup = now(servers, place_of(stack, servers))
    realm = Realm.open(stack.folder)
    realm.power.destroy(realm.machine(f"{stack.name}-{DATABASE}").number)

    def recover() -> None:
        stack.pulumi("refresh", "--yes", "--skip-preview")
        drive("up")
        restore = ["backup", "restore", stack.name, backup.id, "--replace", "--rehearsal"]
        run([sys.executable, "-m", "uds", *restore], PROJECT_FOLDER, stack.environment)
        if NOTE not in _notes(address, application.certificate or ""):
            raise OperatorError(f"The application doesn't show what the backup {backup.id} has.")

    what = f"database server lost, {RESTORE_BYTES / 1e9:.1f} GB: from its loss to the application working again"
    return [Figure(what, seconds(recover))]


def _notes(address: str, certificate: str) -> list[str]:
    context = ssl.create_default_context(cadata=certificate)
    # It is for the public name, which need not lead here.
    context.check_hostname = False
    connection = http.client.HTTPSConnection(address, context=context, timeout=10)
    connection.request("GET", "/notes")
    return [note["text"] for note in json.load(connection.getresponse())]
