"""What `make bench` writes down."""

from rehearsal.bench.figures import Figure, page

GROUPS = {"Alerts": [Figure("login to mail", 0.234, "s", "0.5 s"), Figure("logins", 120.4, "times")]}


def test_every_figure_is_on_the_page_with_its_goal_and_growth_is_drawn() -> None:
    text = page(GROUPS, {1: 2.04, 50: 30.96})
    assert "## Alerts\n" in text
    assert "| login to mail | 0.23 s | 0.5 s |" in text
    assert "| logins | 120 times |  |" in text
    assert 'x-axis "application servers" [1, 50]' in text
    assert "bar [2.0, 31.0]" in text
