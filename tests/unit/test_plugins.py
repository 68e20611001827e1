"""The stand-ins for Pulumi's cloud plugins can't be met outside a rehearsal."""

import os
import subprocess
from pathlib import Path

import pytest

from components.settings import CloudName
from rehearsal import plugins


@pytest.mark.parametrize("cloud", list(CloudName))
@pytest.mark.parametrize("value", [None, "", "/nonexistent"])
def test_they_refuse_to_run_outside_a_rehearsal(tmp_path: Path, cloud: str, value: str | None) -> None:
    executable = plugins.install(tmp_path, cloud)
    assert executable.name == f"pulumi-resource-{cloud}"
    environment = {key: text for key, text in os.environ.items() if key != "UDS_REHEARSAL"}
    if value is not None:
        environment["UDS_REHEARSAL"] = value
    done = subprocess.run(
        [executable, "127.0.0.1:1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "UDS_REHEARSAL" in done.stderr
    assert "Traceback" not in done.stderr
