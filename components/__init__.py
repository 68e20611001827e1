"""The building blocks of the stack: settings, the firewall model, servers and what runs on them."""

import gc

# Modules are made of many objects that stay: looking for garbage among them takes a fifth of their import.
gc.set_threshold(50_000)
