"""Measurements behind the figures in docs/results.md; outside the tests."""
