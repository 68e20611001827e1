"""For every test."""

from hypothesis import settings

# A busy machine takes long for an example: that is no fault of what is tested.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
