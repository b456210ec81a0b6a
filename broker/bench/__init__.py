"""Time it: the broker beside the raw driver, in one run."""
