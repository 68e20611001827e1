"""`uds rehearse` takes its rehearsal down again, however it ends."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from uds import __main__ as command
from uds import rehearse
from uds.stack import OperatorError

# In place of the driver: writes down what it is asked for and how it ended.
DRIVER = """
import os, pathlib, signal, sys, time
own, verb, seconds, status = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
assert pathlib.Path(os.environ["UDS_REHEARSALS"]).parent == own.parent
def say(what):
    with own.open("a") as file: file.write(what + "\\n")
def stop(*_):
    say("interrupted")
    sys.exit(1)
if verb == "up":
    signal.signal(signal.SIGINT, stop)
say(verb)
time.sleep(seconds)
sys.exit(status)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which the driver writes; the folder of all rehearsals is beside it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Put back afterwards, as the signals are.
    monkeypatch.setenv("UDS_REHEARSALS", "")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path / "driven"
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def drive(own: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a driver whose `up` takes so many seconds and ends with this status."""

    def change(seconds: float = 0, status: int = 0) -> None:
        def driver(verb: str, *_: str) -> list[str]:
            how = [str(seconds), str(status)] if verb == "up" else ["0", "0"]
            return [sys.executable, "-c", DRIVER, str(own), verb, *how]

        monkeypatch.setattr(rehearse, "_driver", driver)

    change()
    return change


def driven(own: Path) -> list[str]:
    """What the driver did; nothing else is left."""
    assert list(own.parent.iterdir()) == [own]
    return own.read_text().split()


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.usefixtures("drive")
def test_it_ends_as_the_verification_does(own: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    def verify(stack: str, *, html: Path | None, rehearsal: bool) -> None:
        assert (stack, html, rehearsal) == ("linode", None, True)
        with own.open("a") as file:
            file.write("verify\n")
        if status:
            raise typer.Exit(status)

    monkeypatch.setattr(command, "verify", verify)
    assert CliRunner().invoke(command.app, ["rehearse", "linode"]).exit_code == status
    assert driven(own) == ["up", "verify", "down"]


def test_a_stack_that_does_not_come_up_is_taken_down(own: Path, drive: Callable[..., None]) -> None:
    drive(status=1)
    with pytest.raises(OperatorError, match="linode does not come up"), rehearse.rehearsed("linode"):
        pytest.fail("it did")
    assert driven(own) == ["up", "down"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_it_ends_the_driver_in_order(
    own: Path, drive: Callable[..., None], number: signal.Signals
) -> None:
    drive(seconds=60)

    def end() -> None:
        while not own.exists():
            threading.Event().wait(0.01)
        # Twice, by somebody in a hurry.
        os.kill(os.getpid(), number)
        with suppress(ProcessLookupError):
            os.kill(os.getpid(), number)

    threading.Thread(target=end, daemon=True).start()
    ended = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(ended), rehearse.rehearsed("linode"):
        pytest.fail("it came up")
    assert driven(own) == ["up", "interrupted", "down"]


@pytest.mark.usefixtures("drive")
def test_whoever_ends_the_verification_has_all_of_it_removed(own: Path) -> None:
    def verify() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    with pytest.raises(SystemExit) as raised, rehearse.rehearsed("linode"):
        verify()
    assert raised.value.code == 128 + signal.SIGTERM
    assert driven(own) == ["up", "down"]
