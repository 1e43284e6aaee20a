"""A whole server and hundreds of scripted clients in one process, on a mock clock, from a seed.

`plan` draws a run from its seed: the server's settings, who comes, what they do and what goes
wrong.  `wire` is the network: TCP in memory, bounded and breakable; `journal` what is kept, on a
disk that is slow, full or torn.  `clients` follow their plans, and come back as `returning` has it;
`world` runs all of it, kills servers and starts them again, restores backups, and records.
`chronicle` reads the log, `history` what was sent and what was heard; where a backup is restored
the history forks.  `invariants` are what has to be true of every history, `coming_back` of those in
it who come back; `broken` shows that each notices.

`python -m tests.simulation --seeds 500` runs many; `--seed N` replays one.
"""
