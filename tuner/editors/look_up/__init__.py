"""Look-up: stored prompts and their targets."""
