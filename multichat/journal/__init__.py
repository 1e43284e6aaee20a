"""Where the messages of rooms are kept: the interface, and journals in memory and in SQLite."""
