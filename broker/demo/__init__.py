"""Show it: one lease lives and dies on a real database."""
