"""The web port without its I/O: HTTP, the page's files, who may ask, and what is asked for."""
