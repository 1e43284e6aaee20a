"""The server: admission, sessions, rooms, and the limits on all of them."""
