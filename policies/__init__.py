"""CrossGuard policies for the guide's core guidelines."""
