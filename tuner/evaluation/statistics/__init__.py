"""Confidence sequences, and intervals over groups."""
