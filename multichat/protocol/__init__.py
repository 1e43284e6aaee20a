"""The wire protocol: bytes, lines, requests and events.

Pure: no module here imports trio, waits, or draws a random number; only `timestamps` reads a clock.
"""
