"""Tests of `multichat.cli`."""
