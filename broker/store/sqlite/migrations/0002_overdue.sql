-- lease.overdue: since when a lease should have been ended, from its first claim until it is gone, stuck or renewed; else NULL.
-- A claim pushes `due` on, so this alone says then how long it waits; and what a dead process had claimed is due again from it.

ALTER TABLE lease ADD COLUMN overdue INTEGER;

CREATE INDEX lease_overdue ON lease (overdue) WHERE overdue IS NOT NULL;
