"""Ray: where trials run."""
