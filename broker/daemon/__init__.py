"""The composition root: builds everything from the configuration; owns start, stop and signals."""

from __future__ import annotations

from broker.daemon.examine import Examined, examine
from broker.daemon.places import ROOT_TOKEN_FILE
from broker.daemon.running import Daemon, serve, start
from broker.daemon.seams import Seams

__all__ = ["ROOT_TOKEN_FILE", "Daemon", "Examined", "Seams", "examine", "serve", "start"]
