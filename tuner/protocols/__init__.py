"""Evaluation protocols of many edits: one after another, and more at once."""
