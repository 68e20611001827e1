"""All that the account of the backups may do: pass on what comes in, and hear what became of it."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from components.backup import receive


def run(path: Path, content: bytes, command: str | None = None) -> subprocess.CompletedProcess[bytes]:
    program = f"import sys, {receive.__name__} as r; r.SOCKET = sys.argv[1]; sys.exit(r.main())"
    environment = {**os.environ, **({} if command is None else {"SSH_ORIGINAL_COMMAND": command})}
    return subprocess.run(
        [sys.executable, "-c", program, str(path)], input=content, capture_output=True, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("answer", "read", "status"),
    [(b"stored x\n", -1, 0), (b"refused: no\n", -1, 1), (b"refused: too much\n", 10, 1), (b"", -1, 1)],
)
def test_what_comes_in_goes_on_and_the_answer_comes_back(tmp_path: Path, answer: bytes, read: int, status: int) -> None:
    content = os.urandom(3_000_000)
    got = b""

    def serve() -> None:
        nonlocal got
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            got = stream.read(read)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "store"))
        listener.listen()
        server = threading.Thread(target=serve)
        server.start()
        done = run(tmp_path / "store", content)
        server.join()
    assert (done.returncode, done.stdout) == (status, answer)
    assert got == (content if read < 0 else content[:read])


@pytest.mark.parametrize("command", ["ls", "/usr/lib/openssh/sftp-server", "scp -f x", " "])
def test_a_command_is_refused(tmp_path: Path, command: str) -> None:
    done = run(tmp_path / "nobody", b"", command)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"adds backups, and does nothing else" in done.stderr


def test_nobody_to_take_it_is_told_in_a_line(tmp_path: Path) -> None:
    done = run(tmp_path / "nobody", b"x")
    assert (done.returncode, done.stderr) == (1, b"no backups are taken now: No such file or directory\n")
