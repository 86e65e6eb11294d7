"""Files read and written whole: text, JSON, YAML, locks, caches, and where they lie."""
