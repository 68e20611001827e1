"""The plugin's process, as Pulumi starts it: `python -m rehearsal.aws ENGINE`."""

from pathlib import Path

from rehearsal.aws import storage
from rehearsal.aws.resources import Api, functions, resources
from rehearsal.provider.base import StandIn, main


def plugin(workspace: Path) -> StandIn:
    """The plugin of this rehearsal."""
    api = Api(workspace)
    return StandIn({**resources(api), **storage.resources(api)}, functions())


if __name__ == "__main__":
    main("aws", "7.51.1", plugin)
