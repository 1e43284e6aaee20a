"""Tests of `multichat.net`."""
