"""The plugin's process, as Pulumi starts it: `python -m rehearsal.linode ENGINE`."""

from rehearsal.linode.resources import resources
from rehearsal.provider.base import StandIn, main

if __name__ == "__main__":
    main("linode", "6.8.0", lambda workspace: StandIn(resources(workspace)))
