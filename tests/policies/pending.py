"""What our own stack can't pass until the capability is there."""

import json
from pathlib import Path

_COMPONENTS = Path(__file__).parents[2] / "components"

# Policy -> the capability (a folder of components/) that our stack needs for it.
_NEEDS = {"server-without-alerts": "monit", "database-server-without-backups": "backup"}

PENDING = {policy: "advisory" for policy, name in _NEEDS.items() if not (_COMPONENTS / name).exists()}
"""As a pack's configuration. Empty as soon as all capabilities are there."""


def pack_arguments(folder: Path) -> list[str]:
    """For Pulumi, so that a run isn't refused for what is pending."""
    file = folder / "policies.json"
    file.write_text(json.dumps(PENDING))
    return ["--policy-pack-config", str(file)]
