"""The life of a lease, one verb a file."""
