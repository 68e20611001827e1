"""The building blocks of the stack: settings, the firewall model, servers and what runs on them."""
