"""The plugin's process, as Pulumi starts it: `python -m rehearsal.aws ENGINE`."""

from rehearsal.aws.resources import Api, functions, resources
from rehearsal.provider.base import StandIn, main

if __name__ == "__main__":
    main("aws", "7.51.1", lambda workspace: StandIn(resources(Api(workspace)), functions()))
