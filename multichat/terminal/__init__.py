"""What people see and type on a terminal: the chat, and the console of a server."""
