"""Interactive terminal programs: the chat client and the server's admin console."""
