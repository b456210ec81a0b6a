"""Real database servers and a whole broker, for a test suite, the demo and the bench."""
