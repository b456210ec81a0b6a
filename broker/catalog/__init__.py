"""Which connections and roles exist, and the open engine of each."""
