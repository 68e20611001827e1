"""This machine in place of the cloud: what boots, connects and guards the rehearsal's servers."""

import gc

# Modules are made of many objects that stay: looking for garbage among them takes a fifth of their import.
gc.set_threshold(50_000)
