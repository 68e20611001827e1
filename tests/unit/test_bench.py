"""What `make bench` writes down."""

from pathlib import Path

import pytest

from rehearsal.bench import against
from rehearsal.bench.figures import Figure, page
from uds.stack import OperatorError

GROUPS = {"Alerts": [Figure("login to mail", 0.234, "s", "0.5 s"), Figure("logins", 120.4, "times")]}


def test_every_figure_is_on_the_page_with_its_goal_and_growth_is_drawn() -> None:
    text = page(GROUPS, {1: 2.04, 50: 30.96})
    assert "## Alerts\n" in text
    assert "| login to mail | 0.23 s | 0.5 s |" in text
    assert "| logins | 120 times |  |" in text
    assert 'x-axis "application servers" [1, 50]' in text
    assert "bar [2.0, 31.0]" in text


def test_what_was_not_measured_is_on_the_page_too() -> None:
    text = page({"Elsewhere": [], **GROUPS}, {1: 2.0})
    assert "## Elsewhere\n\nNot measured this time" in text
    assert "| login to mail |" in text


def test_ours_is_compared_in_parts_of_theirs() -> None:
    found = against.figures(first=100, again=80, up=40, nothing=6)
    assert [(figure.text, figure.goal) for figure in found[2:]] == [
        ("0.40 times", "0.5 times"),
        ("0.07 times", "0.1 times"),
    ]


def test_a_folder_that_is_not_the_collection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "roles" / "os_hardening").mkdir(parents=True)
    with pytest.raises(OperatorError, match="no roles/ssh_hardening"):
        against.check(tmp_path)
    (tmp_path / "roles" / "ssh_hardening").mkdir()
    against.check(tmp_path)
