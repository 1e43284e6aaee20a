"""Sockets, TLS, send queues, and turns at the event loop."""
