"""The web port without its I/O: HTTP, the page's files, and which requests are allowed."""
