"""Tests of `multichat.cluster`, on real engines."""
