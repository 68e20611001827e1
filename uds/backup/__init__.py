"""`uds backup`: backups made, listed and restored from the operator's machine."""
