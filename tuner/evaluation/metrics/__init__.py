"""Metrics beside success and deviation."""
