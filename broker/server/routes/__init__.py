"""The operations, a module for each mount; `broker.server.app` gathers their tables."""
