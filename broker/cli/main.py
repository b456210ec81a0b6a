"""The command `broker`."""


def main() -> None:
    """Runs it."""
