"""What is said on the wire, as bytes, lines, requests and events.

Pure: no module here imports trio, reads a clock or draws a random number.
"""
