"""The workflows: nothing that could change under us, and nothing that a pull request could make use of."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOWS = sorted((Path(__file__).parents[2] / ".github/workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    # "on" is a boolean to YAML 1.1.
    document: dict[Any, Any] = yaml.safe_load(path.read_text())
    return document


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_keep_no_credentials(path: Path) -> None:
    for job in read(path)["jobs"].values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_is_allowed_but_reading_unless_a_job_says_so(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}


def test_pull_requests_get_no_secret_and_comments_run_none_of_their_code() -> None:
    path = next(path for path in WORKFLOWS if path.name == "preview.yml")
    workflow = read(path)
    assert set(workflow[True]) == {"pull_request"}
    assert "secrets." not in path.read_text()
    allowed = {name: job.get("permissions") for name, job in workflow["jobs"].items()}
    assert allowed == {"preview": None, "comment": {"pull-requests": "write"}}
    (step,) = workflow["jobs"]["comment"]["steps"]
    # What comes from the pull request comes in the environment, never as part of a script.
    assert "${{" not in step["run"]
