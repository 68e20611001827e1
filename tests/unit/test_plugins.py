"""The stand-ins for Pulumi's cloud plugins can't be met outside a rehearsal."""

import os
import subprocess
from pathlib import Path

import pytest

from rehearsal import plugins


@pytest.mark.parametrize("cloud", plugins.CLOUDS)
@pytest.mark.parametrize("value", [None, "", "/nonexistent"])
def test_they_refuse_to_run_outside_a_rehearsal(tmp_path: Path, cloud: str, value: str | None) -> None:
    plugins.install(tmp_path, cloud)
    environment = {key: text for key, text in os.environ.items() if key != "UDS_REHEARSAL"}
    if value is not None:
        environment["UDS_REHEARSAL"] = value
    done = subprocess.run(
        [tmp_path / "bin" / f"pulumi-resource-{cloud}", "127.0.0.1:1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "UDS_REHEARSAL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rehearsal_has_its_own_clouds_only(tmp_path: Path) -> None:
    plugins.install(tmp_path, "linode")
    plugins.install(tmp_path, "aws")
    assert {path.name for path in tmp_path.glob("*/*")} == {"pulumi-resource-aws"}
    plugins.install(tmp_path, "azure")
    assert list(tmp_path.glob("*/*")) == []
