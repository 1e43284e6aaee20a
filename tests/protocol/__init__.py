"""Tests of `multichat.protocol`."""
