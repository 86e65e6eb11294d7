"""Verbs about launched studies."""
