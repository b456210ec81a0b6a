"""A database credential broker: database users that live for one session."""

__version__ = "0.1.0"
