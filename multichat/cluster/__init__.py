"""The engine of a cluster: Valkey or Redis, shared by all nodes.  Needs the extra `cluster`."""
