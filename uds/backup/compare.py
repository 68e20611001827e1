"""Two descriptions of a database, as `on_server.describe` makes them, side by side."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """What is different in a restored copy and the live database.

    `structure` is said in words. `counts` has the number of rows of each table of both: copy, live.
    """

    structure: tuple[str, ...]
    counts: Mapping[str, tuple[int, int]]


def compare(copy: Mapping[str, Any], live: Mapping[str, Any]) -> Comparison:
    """Everything but the rows must be the same; rows may have been written since the backup."""
    counts = {
        table: (copy["counts"][table], live["counts"][table])
        for table in sorted(copy["counts"].keys() & live["counts"].keys())
    }
    return Comparison(tuple(_structure(copy["structure"], live["structure"])), counts)


def _structure(copy: Mapping[str, str], live: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(live.keys() - copy.keys()):
        yield f"{name} is missing in the backup"
    for name in sorted(copy.keys() - live.keys()):
        yield f"{name} is in the backup only"
    for name in sorted(copy.keys() & live.keys()):
        if copy[name] != live[name]:
            theirs, ours = copy[name].splitlines(), live[name].splitlines()
            backup_only = [line.strip() for line in theirs if line not in ours]
            live_only = [line.strip() for line in ours if line not in theirs]
            yield f"{name} differs: backup {_quoted(backup_only)}, live {_quoted(live_only)}"


def _quoted(lines: list[str]) -> str:
    return " ".join(lines)[:300] or "(the same lines in another order)"
