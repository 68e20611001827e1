"""Alerts: what happens here -> a queue on the disk -> e-mail, Slack and Pushover. With Python's own library only."""
