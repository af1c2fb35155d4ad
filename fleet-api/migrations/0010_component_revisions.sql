-- A channel offers a revision of a release: the same root with other components.
ALTER TABLE channel ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
