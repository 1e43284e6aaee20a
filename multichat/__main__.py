"""`python -m multichat` is `multichat`."""

from multichat.cli import main

main()
