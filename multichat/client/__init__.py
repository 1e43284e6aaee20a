"""The client as a library: connections, reconnects, and the `Chat` that a program uses."""
