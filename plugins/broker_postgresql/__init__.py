"""The PostgreSQL engine."""

from broker_postgresql.engine import Engine

__all__ = ["Engine"]
