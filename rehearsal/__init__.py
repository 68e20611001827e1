"""This machine in place of the cloud: what boots, connects and guards the rehearsal's servers."""
