"""Tests of `multichat.backend`."""
