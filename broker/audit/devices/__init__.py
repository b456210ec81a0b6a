"""Where the lines go."""
