"""Tests of `multichat.journal`."""
