"""What `uds verify` shows: a table, JSON, or one page of HTML with a picture of who may reach whom."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table

from uds.verify import Report

_TEMPLATE = Path(__file__).parent / "report.html.j2"
_WORLD = "the world"
_ROW = 64


@dataclass(frozen=True)
class Arrow:
    """Who may reach a server on which ports, by its live rules; heights are of the picture."""

    source: str
    server: str
    ports: str
    start: int
    end: int


def table(report: Report) -> Table:
    """The failures, and what to do about each."""
    shown = Table("server", "guide", "what", "problem", "what to do")
    for result in report.failures:
        shown.add_row(
            result.server,
            result.check.section,
            result.check.title,
            "\n".join(result.problems),
            result.remedy.replace("STACK", report.stack),
        )
    return shown


def to_json(report: Report) -> str:
    """Everything that was checked, for programs."""
    return json.dumps(
        {
            "stack": report.stack,
            "ok": not report.failures,
            "checks": [
                {
                    "server": result.server,
                    "name": result.check.name,
                    "section": result.check.section,
                    "title": result.check.title,
                    "ok": not result.problems,
                    "problems": list(result.problems),
                    "remedy": result.remedy.replace("STACK", report.stack),
                }
                for result in report.results
            ],
            "reach": {
                server: [{"source": arrow.source, "ports": arrow.ports} for arrow in _arrows(report, server)]
                for server in report.servers
            },
        },
        indent=2,
    )


def to_html(report: Report) -> str:
    """One page that needs nothing else."""
    sources = sorted({arrow.source for server in report.servers for arrow in _arrows(report, server)})
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True)
    return environment.from_string(_TEMPLATE.read_text()).render(
        report=report,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        row=_ROW,
        height=_ROW * max(len(sources), len(report.servers)) + 16,
        sources=list(enumerate(sources)),
        servers=list(enumerate(report.servers)),
        arrows=[
            arrow for index, server in enumerate(report.servers) for arrow in _arrows(report, server, sources, index)
        ],
    )


def _arrows(report: Report, server: str, sources: list[str] | None = None, index: int = 0) -> Iterator[Arrow]:
    """One for each source, with all the ports that it may reach."""
    ports: dict[str, set[str]] = {}
    for rule in report.reach[server]:
        ports.setdefault(_who(rule.source, report.servers), set()).add(f"{rule.protocol} {rule.port}")
    for source, reached in sorted(ports.items()):
        start = sources.index(source) if sources else 0
        yield Arrow(source, server, ", ".join(sorted(reached)), start * _ROW + _ROW // 2, index * _ROW + _ROW // 2)


def _who(source: str | None, servers: Mapping[str, Mapping[str, Any]]) -> str:
    """A name for a rule's source."""
    if source is None or ip_network(source).prefixlen == 0:
        return _WORLD
    for name, facts in servers.items():
        if source in {f"{facts['privateIp']}/32", f"{facts.get('outwardIp')}/32"}:
            return name
    return source
