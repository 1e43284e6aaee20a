"""Storage of messages and sessions: the interface, and journals in memory and in SQLite."""
