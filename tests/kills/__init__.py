"""Kills a server under load; see `python -m tests.kills --help`."""
