"""Simulates several nodes that share one engine in memory; see `tests.simulation`.

`plan` generates a run from its seed, `engine` decides what the nodes propose, and `world` runs it
all: clients connect to any node and resume on another, nodes are killed, frozen and woken, and
links are cut.  `checker` compares what each connection was told with what the engine has stored.
"""
