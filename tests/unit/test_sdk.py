"""Imports of single modules of a provider's SDK."""

import subprocess
import sys

import pytest

from components.clouds.sdk import without_the_rest


def test_one_module_comes_alone_and_the_package_is_whole_afterwards() -> None:
    # In a process of its own: here, other tests have imported it all.
    script = """
import sys
from components.clouds.sdk import without_the_rest
with without_the_rest("pulumi_linode"):
    from pulumi_linode.vpc import Vpc
assert "pulumi_linode" not in sys.modules
assert "pulumi_linode.lke_cluster" not in sys.modules
import pulumi_linode
assert pulumi_linode.Vpc is Vpc
assert pulumi_linode.LkeCluster
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_sdk_that_is_not_installed_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_sdk"), without_the_rest("no_such_sdk"):
        pass
