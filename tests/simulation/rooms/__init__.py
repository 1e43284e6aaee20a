"""Simulates clients in several rooms, and accounts; see `tests.simulation`.

`plan` generates a run from its seed, `clients` are in several rooms and log in.  `wire` parses what
each connection requested and was told, and `walk` follows it, room by room.  `chronicle` follows
names and logins through the log.  `invariants` checks both; `broken` has the mutations, and
`world` runs it all.
"""
