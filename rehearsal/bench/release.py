"""How long the world feels that a new release takes over."""

import shutil
from pathlib import Path

from components.settings import parse
from rehearsal.bench.clock import run
from rehearsal.visitor import Visitor
from rehearsal.workspace import PROJECT_FOLDER, Workspace
from uds.stack import OperatorError, Stack

SWITCHES = 3


def switch(stack: Stack, temporary: Path) -> float | None:
    """Seconds in which a visitor is not answered while a new release takes over, if the stack delivers one."""
    application = parse(stack.config()).application
    if application.release is None or application.certificate is None:
        return None
    source, folder = PROJECT_FOLDER / application.release, temporary / "release"
    if source.is_dir():
        shutil.copytree(source, folder)
    else:
        shutil.unpack_archive(source, folder, "gztar")
    Workspace(stack.name).set_section("application", {"release": str(folder)})
    address = stack.outputs()["servers"]["app-1"]["publicIp"]
    up = ["pulumi", "up", "--yes", "--skip-preview", "--stack", stack.name]
    away = []
    for number in range(SWITCHES):
        (folder / "bench").write_text(str(number))
        with Visitor(address, application.certificate, application.health_path) as visitor:
            run(up, stack.folder, stack.environment)
        if not visitor.answers:
            raise OperatorError(f"{stack.name}: nobody answers on https://{address}{application.health_path}")
        away.append(visitor.away)
    return max(away)
