-- One-time codes by which an installer without a factory reaches the sky. A unit has one
-- at most; it counts for every machine until one of them is born with it.
CREATE TABLE pass (
    unit    TEXT PRIMARY KEY REFERENCES unit (name),
    hash    BLOB NOT NULL UNIQUE,
    expires INTEGER NOT NULL,
    created INTEGER NOT NULL,
    used_by TEXT REFERENCES machine (code)
) STRICT;

-- The unit whose pass the machine came with; none behind a factory.
ALTER TABLE machine ADD COLUMN pass TEXT REFERENCES unit (name);

CREATE INDEX machine_pass ON machine (pass, first_seen) WHERE pass IS NOT NULL;
