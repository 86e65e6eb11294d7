"""One trial: an editor under a deviation budget, and its records."""
