"""The built-in world: its facts, its text, its tasks and the small model trained on it."""
