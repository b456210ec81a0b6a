"""How a database is spoken to, whatever kind it is."""
