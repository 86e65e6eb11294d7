"""Changes of a model that are stored edits with a router, one file per kind."""
