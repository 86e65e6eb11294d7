"""Shared by the editors that retrieve an edit as text: scope classifier, memory, training."""
