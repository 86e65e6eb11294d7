"""Retrieve and prompt: the model reads the retrieved edit before the prompt."""
