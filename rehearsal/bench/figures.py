"""What was measured, as a table for the terminal and a page for the documents."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One result. `goal` says how large it is to be at least or at most, where there is one."""

    what: str
    value: float
    unit: str = "s"
    goal: str = ""

    @property
    def text(self) -> str:
        """The value with its unit."""
        return f"{self.value:.{0 if self.value >= 100 else 2}f} {self.unit}"


Groups = Mapping[str, Sequence[Figure]]


def table(title: str, figures: Sequence[Figure]) -> Table:
    """One group, for the terminal."""
    shown = Table(title, "measured", "goal")
    for figure in figures:
        shown.add_row(figure.what, figure.text, figure.goal)
    return shown


def page(groups: Groups, growth: Mapping[int, float]) -> str:
    """For the documents, in Markdown, with a plot of what a preview takes for more and more application servers."""
    lines = [
        "# Benchmarks",
        "",
        f"Measured by `make bench` on {date.today():%Y-%m-%d}: {os.cpu_count()} cores ({_processor()}),",
        f"{_memory_gib()} GiB of memory, {platform.system()} {platform.release().partition('-')[0]},"
        f" Python {platform.python_version()}. Times that are compared are medians, taken in turn,",
        "so that a busy moment of the machine meets both. A goal is the most that it may be, unless it says otherwise.",
    ]
    for title, figures in groups.items():
        lines += ["", f"## {title}", ""]
        if not figures:
            lines.append("Not measured this time: `make help` says how.")
            continue
        lines += ["| what | measured | goal |", "|---|---|---|"]
        lines += [f"| {figure.what} | {figure.text} | {figure.goal} |" for figure in figures]
    counts, seconds = [str(count) for count in growth], [f"{value:.1f}" for value in growth.values()]
    lines += [
        "",
        "```mermaid",
        "xychart-beta",
        '    title "A preview of a new stack"',
        f'    x-axis "application servers" [{", ".join(counts)}]',
        '    y-axis "seconds"',
        f"    bar [{', '.join(seconds)}]",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
