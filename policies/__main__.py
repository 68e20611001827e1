"""What Pulumi starts: serve the policies. Building the pack blocks, so it is done nowhere else."""

from pulumi_policy import PolicyPack

from policies.pack import NAME, policies

PolicyPack(NAME, policies())
