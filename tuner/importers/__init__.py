"""Published benchmark files: where they are, how they are downloaded, and how they become tasks."""
