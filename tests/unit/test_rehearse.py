"""`uds rehearse` takes its rehearsal down again, however it ends."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from uds import __main__ as command
from uds import rehearse
from uds.stack import OperatorError


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the driver was asked for; the folder of all rehearsals is one that this test owns."""
    verbs: list[str] = []

    def drive(verb: str, *_: str) -> int:
        verbs.append(verb)
        assert Path(os.environ["UDS_REHEARSALS"]).parent == tmp_path
        return 0

    monkeypatch.setattr(rehearse, "_drive", drive)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Put back afterwards, as the signals are.
    monkeypatch.setenv("UDS_REHEARSALS", "")
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(signal, "signal", lambda *_: before)
    return verbs


@pytest.mark.parametrize("status", [0, 1])
def test_it_ends_as_the_verification_does(
    driven: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    def verify(stack: str, *, html: Path | None, rehearsal: bool) -> None:
        assert (stack, html, rehearsal) == ("linode", None, True)
        driven.append("verify")
        if status:
            raise typer.Exit(status)

    monkeypatch.setattr(command, "verify", verify)
    assert CliRunner().invoke(command.app, ["rehearse", "linode"]).exit_code == status
    assert driven == ["up", "verify", "down"]
    assert list(tmp_path.iterdir()) == []


def test_a_stack_that_does_not_come_up_is_taken_down(
    driven: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = rehearse._drive
    monkeypatch.setattr(rehearse, "_drive", lambda verb, *rest: fine(verb, *rest) + (verb == "up"))
    with pytest.raises(OperatorError, match="linode does not come up"), rehearse.rehearsed("linode"):
        pytest.fail("it did")
    assert driven == ["up", "down"]
    assert list(tmp_path.iterdir()) == []
