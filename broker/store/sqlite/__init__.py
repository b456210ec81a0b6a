"""The embedded store: one SQLite file, written by one thread."""
