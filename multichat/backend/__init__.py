"""What the nodes of one chat decide together: the backend, and the local one."""
