"""Pulumi's own runs: how long they take beside an empty program's, and what the policies add to a preview."""

import shutil
import statistics
from collections.abc import Sequence

import yaml

from rehearsal.bench.clock import largest, run, seconds
from rehearsal.bench.figures import Figure
from rehearsal.workspace import POLICIES, Workspace

RUNS = 7
COUNTS = (1, 10, 50)


def nothing_to_do(workspace: Workspace) -> list[Figure]:
    """A run that changes nothing: of the stack, and of an empty program with the same configuration."""
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
    return [
        Figure("`pulumi up`, nothing to do", statistics.median(ours)),
        Figure("the same of an empty program, same configuration", statistics.median(theirs)),
        Figure("of that, ours takes", _ratio(ours, theirs), "times", "2 times"),
    ]


def previews(workspace: Workspace) -> list[Figure]:
    """A preview of the whole stack: alone, and with the policies."""
    preview = ["pulumi", "preview", "--stack", workspace.stack]
    with_pack = [*preview, "--policy-pack", str(POLICIES)]
    alone, judged = [], []
    # In turn, as above.
    for _ in range(RUNS):
        alone.append(seconds(lambda: run(preview, workspace.folder, workspace.environment())))
        judged.append(seconds(lambda: run(with_pack, workspace.folder, workspace.environment())))
    added = statistics.median(more - less for more, less in zip(judged, alone, strict=True))
    return [
        Figure("`pulumi preview`", statistics.median(alone)),
        Figure("what the policies add to it", added, "s", "1.5 s"),
        Figure("what they add, in parts of it", 100 * (_ratio(judged, alone) - 1), "%", "30 %"),
    ]


def _ratio(some: Sequence[float], others: Sequence[float]) -> float:
    """Of each turn by itself: a busy moment of the machine meets both."""
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


def growth(workspace: Workspace) -> dict[int, list[Figure]]:
    """Previews of a stack of which nothing is there yet, by the number of application servers."""
    found = {}
    for count in COUNTS:
        workspace.set_section("app", {"count": count})
        preview = ["pulumi", "preview", "--stack", workspace.stack]
        took, most = largest(preview, workspace.folder, workspace.environment())
        what = f"preview of a new stack with {count} application server{'s' if count > 1 else ''}"
        found[count] = [Figure(what, took), Figure("its largest process", most / 2**20, "MiB")]
    return found
