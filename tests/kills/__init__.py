"""A server that is killed under load; see `python -m tests.kills --help`."""
