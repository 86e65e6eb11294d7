"""What an edit is: models, tasks, deltas and the interface of every editor."""
