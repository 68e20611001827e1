"""Pulumi's own runs: how long they take beside an empty program's, and what the policies add to a preview."""

import shutil
import statistics

import yaml

from rehearsal.bench.clock import run, seconds
from rehearsal.workspace import POLICIES, Workspace

RUNS = 7


def nothing_to_do(workspace: Workspace) -> tuple[float, float]:
    """Seconds of a run that changes nothing: of the stack, and of an empty program with the same configuration."""
    folder = workspace.folder
    environment = workspace.environment()
    empty = folder / "empty"
    (empty / "state").mkdir(parents=True)
    (empty / "program").mkdir()
    (empty / "program" / "__main__.py").touch()
    project = yaml.safe_load((folder / "Pulumi.yaml").read_text())
    (empty / "Pulumi.yaml").write_text(yaml.safe_dump(project | {"main": "program"}))
    shutil.copy(workspace.stack_file, empty)
    elsewhere = environment | {"PULUMI_BACKEND_URL": f"file://{empty / 'state'}"}
    run(["pulumi", "stack", "init", workspace.stack], empty, elsewhere)
    up = ["pulumi", "up", "--yes", "--skip-preview", "--stack", workspace.stack]
    run(up, empty, elsewhere)
    ours, theirs = [], []
    # In turn, so that a busy moment of the machine meets both.
    for _ in range(RUNS):
        ours.append(seconds(lambda: run([*up, "--expect-no-changes"], folder, environment)))
        theirs.append(seconds(lambda: run([*up, "--expect-no-changes"], empty, elsewhere)))
    return statistics.median(ours), statistics.median(theirs)


def previews(workspace: Workspace) -> tuple[float, float]:
    """Seconds of a preview of the whole stack: alone, and with the policies."""
    preview = ["pulumi", "preview", "--stack", workspace.stack]
    with_pack = [*preview, "--policy-pack", str(POLICIES)]
    alone, judged = [], []
    # In turn, as above.
    for _ in range(RUNS):
        alone.append(seconds(lambda: run(preview, workspace.folder, workspace.environment())))
        judged.append(seconds(lambda: run(with_pack, workspace.folder, workspace.environment())))
    return statistics.median(alone), statistics.median(judged)
