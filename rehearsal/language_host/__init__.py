"""The Python language host of a rehearsal, for machines where Pulumi's own ``pulumi-language-python`` can't be had.

The engine starts a language host to run programs, policy packs and provider plugins written in Python. ``__main__`` is
the gRPC service that the engine talks to; ``program`` and ``plugin`` run in child processes of their own.
"""
