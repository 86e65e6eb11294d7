"""The command line, run in the tests' own process."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Runs a verb; returns exit code, output and messages."""
