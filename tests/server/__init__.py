"""Tests of `multichat.server`."""
