"""Tests of `multichat.client`."""
