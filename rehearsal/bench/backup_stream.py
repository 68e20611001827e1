"""How fast a backup is made, measured on a database server by its own programs; prints JSON.

`python3 - BYTES RUNS` as root: fills a database of about that size, and times in turn the dump alone, our stream, and
the guide's own pipeline (3.11.2) without its copy elsewhere. Seconds of each, and the most memory that our stream had.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

DATABASE = "bench"
# About what a table of users is made of; a row is 260 bytes of the dump.
ROW_BYTES = 260
FILL = """
CREATE DATABASE bench;
USE bench;
CREATE TABLE users (
    id INT PRIMARY KEY AUTO_INCREMENT, email VARCHAR(100), name VARCHAR(100), hash CHAR(60), created DATETIME, note TEXT
);
INSERT INTO users (email, name, hash, created, note)
    SELECT
        CONCAT('user', seq, '@example.org'),
        CONCAT(ELT(1 + MOD(seq, 5), 'Alice', 'Bob', 'Carol', 'Dave', 'Eve'), ' ', MD5(seq)),
        CONCAT('$2y$12$', LEFT(TO_BASE64(UNHEX(SHA2(seq, 256))), 43), 'abcdefghij'),
        NOW() - INTERVAL seq SECOND,
        CONCAT('{"ip": "', INET_NTOA(CRC32(seq)), '", "agent": "Mozilla/5.0 (X11)", "token": "', SHA1(seq), '"}')
    FROM seq_1_to_ROWS;
"""
DUMP = f"mariadb-dump --single-transaction --quick --routines --events --triggers --hex-blob {DATABASE}"
# As it is written there, but for the password and the order of words that today's openssl wants; with its key pair.
GUIDE = f"""
set -e
mariadb-dump {DATABASE} > production.sql
tar -pczf backup.tar.gz *.sql
openssl rand -out backup.passphrase 32
openssl enc -aes-256-cbc -pass file:backup.passphrase < backup.tar.gz > backup.tar.gz.enc 2>/dev/null
openssl rsautl -encrypt -pubin -inkey public-key.pem < backup.passphrase > backup.passphrase.enc 2>/dev/null
rm backup.tar.gz backup.passphrase
"""


def shell(script: str, folder: Path) -> None:
    """Run it, or end."""
    subprocess.run(["bash", "-c", script], cwd=folder, check=True)


def sender() -> Any:  # noqa: ANN401 - a module that only that server has
    """The backup's own program."""
    loader = SourceFileLoader("uds_backup", "/usr/local/sbin/uds-backup")
    spec = spec_from_loader("uds_backup", loader)
    if spec is None:
        raise ImportError("uds-backup is not here")
    module = sys.modules["uds_backup"] = module_from_spec(spec)
    loader.exec_module(module)
    return module


def memory() -> int:
    """Bytes that this process and its children have."""
    kib = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kib * 1024


def main(size: int, runs: int) -> None:
    """Measure."""
    backup = sender()
    subprocess.run(["mariadb"], input=FILL.replace("ROWS", str(size // ROW_BYTES)), text=True, check=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, memory())

    def ours(folder: Path) -> None:
        (folder / "ours").unlink(missing_ok=True)
        watcher = threading.Thread(target=watch)
        done.clear()
        watcher.start()
        backup.encrypt(backup.Engine().database("bench", DATABASE), folder / "ours")
        done.set()
        watcher.join()

    ways: dict[str, Callable[[Path], None]] = {
        "dump": lambda folder: shell(f"{DUMP} > /dev/null", folder),
        "ours": ours,
        "guide": lambda folder: shell(GUIDE, folder),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    try:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
            folder = Path(name)
            shell("{ openssl genrsa -out key 2048; openssl rsa -in key -out public-key.pem -pubout; } 2>&-", folder)
            for _ in range(runs):
                for way, run in ways.items():
                    started = time.monotonic()
                    run(folder)
                    seconds[way].append(time.monotonic() - started)
            size = (folder / "production.sql").stat().st_size
    finally:
        subprocess.run(["mariadb", "-e", f"DROP DATABASE {DATABASE}"], check=True)
    print(json.dumps({"seconds": seconds, "bytes": size, "memory": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
