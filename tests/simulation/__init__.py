"""A whole server and hundreds of scripted clients in one process, on a mock clock, from a seed.

`plan` draws a run from its seed: the server's settings, who comes, what they do and what goes
wrong.  `wire` is the network: TCP in memory, bounded and breakable.  `clients` follow their plans,
`world` runs all of it and records.  `history` reads the records: the log, what was sent, what was
heard.  `invariants` are what has to be true of every history.

`python -m tests.simulation --seeds 500` runs many; `--seed N` replays one.
"""
