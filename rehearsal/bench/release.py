"""How long the world feels that a new release takes over."""

import shutil
import tempfile
from pathlib import Path

from components.settings import parse
from rehearsal.bench.clock import run
from rehearsal.bench.figures import Figure
from rehearsal.visitor import Visitor
from rehearsal.workspace import PROJECT_FOLDER, Workspace
from uds.stack import OperatorError, Stack

SWITCHES = 3


def switch(stack: Stack) -> list[Figure]:
    """How long a visitor is not answered while a new release takes over, if the stack delivers one."""
    application = parse(stack.config()).application
    if application.release is None or application.certificate is None:
        return []
    source = PROJECT_FOLDER / application.release
    address = stack.outputs()["servers"]["app-1"]["publicIp"]
    up = ["pulumi", "up", "--yes", "--skip-preview", "--stack", stack.name]
    away = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "release"
        if source.is_dir():
            shutil.copytree(source, folder)
        else:
            shutil.unpack_archive(source, folder, "gztar")
        Workspace(stack.name).set_section("application", {"release": str(folder)})
        for number in range(SWITCHES):
            (folder / "bench").write_text(str(number))
            with Visitor(address, application.certificate, application.health_path) as visitor:
                run(up, stack.folder, stack.environment)
            if not visitor.answers:
                raise OperatorError(f"{stack.name}: nobody answers on https://{address}{application.health_path}")
            away.append(visitor.away)
        # The next run must find one.
        Workspace(stack.name).set_section("application", {"release": application.release})
    return [Figure("a new release: nobody answers on 443 (the longest of three)", max(away), "s", "2 s")]
