"""docs/guide-map.md says what is so: each check, policy, test and file that it names, and none left out."""

import ast
import re
from pathlib import Path

import pytest

import uds.verify  # noqa: F401 - registers the checks
from policies.pack import RULES
from uds.verify.check import CHECKS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/guide-map.md"
TEXT = PAGE.read_text()

# Section -> its text, up to the next heading.
SECTIONS = {
    heading.split()[0]: text for heading, text in re.findall(r"^#{2,3} (.*)\n((?:(?!#{2,3} ).*\n?)*)", TEXT, flags=re.M)
}
# The core guideline, which is no section of its own, belongs to all of chapter 3.
GUIDELINE = "The"


def named(section: str, kind: str) -> list[str]:
    """What a section's line of this kind names."""
    return re.findall(r"`([^`]+)`", next(iter(re.findall(rf"^- {kind}: (.*)$", SECTIONS[section], flags=re.M)), ""))


def test_every_section_of_the_guide_is_there() -> None:
    third = ["3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.11.1", "3.11.2"]
    fourth = ["4", "4.1", "4.2", "4.3", "4.4", "4.5", "4.6", "4.7", "4.8"]
    assert list(SECTIONS) == [*third, *fourth, GUIDELINE]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_names_its_checks_and_policies(section: str) -> None:
    assert named(section, "Checks") == sorted(one.name for one in CHECKS if one.section == section)
    guide = "3" if section == GUIDELINE else section
    assert named(section, "Policies") == sorted(rule.name for rule in RULES if rule.section == guide)


def test_nothing_belongs_to_a_section_that_the_page_lacks() -> None:
    of_rules = {rule.section for rule in RULES} - {"3"}
    assert of_rules | {one.section for one in CHECKS} <= SECTIONS.keys()


@pytest.mark.parametrize("section", SECTIONS)
def test_the_tests_that_it_names_exist(section: str) -> None:
    for test in named(section, "Tests"):
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / "tests/rehearsal" / file).read_text())
        assert not function or function in {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}


@pytest.mark.parametrize("page", sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")]), ids=lambda page: page.name)
def test_the_links_of_every_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
