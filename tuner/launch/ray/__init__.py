"""The back end for a Ray cluster's job server."""
