#!/usr/bin/python3 -IB
"""All that the account of the backups may do on the backup server: hand one file over, and hear what became of it.

sshd runs it whatever is asked for. The account itself can't reach what is kept: root takes it, at the other end of the
socket (`uds-backup-store`).
"""

import os
import socket
import sys
from contextlib import suppress

SOCKET = "/run/uds-backup-store"


def main() -> int:
    """Pass on standard input, and print the answer."""
    if os.environ.get("SSH_ORIGINAL_COMMAND"):
        print("refused: this account adds backups, and does nothing else", file=sys.stderr)
        return 1
    with socket.socket(socket.AF_UNIX) as store:
        try:
            store.connect(SOCKET)
        except OSError as error:
            print(f"no backups are taken now: {error.strerror}", file=sys.stderr)
            return 1
        # Closed where it refuses before all has been sent; the answer is there all the same.
        with suppress(ConnectionError):
            while block := os.read(0, 1 << 18):
                store.sendall(block)
            store.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while block := store.recv(4096):
                answer += block
    sys.stdout.buffer.write(answer)
    return 0 if answer.startswith(b"stored ") else 1


if __name__ == "__main__":
    sys.exit(main())
