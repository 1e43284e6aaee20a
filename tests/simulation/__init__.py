"""Simulates a whole server and hundreds of scripted clients, on a mock clock, from a seed.

`plan` generates a run from its seed: the server's settings, the clients and their actions, and the
faults.  `wire` is the network: TCP in memory, bounded and breakable.  `journal` is a journal on a
disk that is slow, full or damaged.  `clients` follow their plans, and reconnect as `returning`
plans it.  `world` runs everything, kills and restarts servers, restores backups, and records.
`chronicle` parses the log; `history` is what was sent and received, and forks where a backup is
restored.  `invariants` checks every history, `coming_back` checks reconnects and the journal;
`broken` contains a faulty server for each invariant.

`python -m tests.simulation --seeds 500` runs many; `--seed N` replays one.
"""
