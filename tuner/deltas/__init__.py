"""Changes that are not weight deltas: sense vectors, ensembles, memories."""
