"""A delta with all that is needed to trust and use it, on disk and in other tools' formats."""
