"""Faults in a cluster of real processes under load; see `python -m tests.cluster.chaos --help`."""
