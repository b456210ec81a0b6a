"""Which key, is it intact; sealing, and the subkeys that others are handed."""
