"""Tests of `multichat.terminal`."""
