-- Times are microseconds since 1970-01-01 UTC. Documents are JSON as received.

CREATE TABLE token (
    hash    BLOB PRIMARY KEY,
    holder  TEXT NOT NULL CHECK (holder IN ('operator', 'factory', 'vault')),
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE customer (
    name    TEXT PRIMARY KEY,
    title   TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE layer (
    customer TEXT NOT NULL REFERENCES customer (name),
    version  INTEGER NOT NULL,
    document TEXT NOT NULL,
    sha256   TEXT NOT NULL,
    size     INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (customer, version)
) STRICT;

CREATE TABLE layer_image (
    customer TEXT NOT NULL REFERENCES customer (name),
    sha256   TEXT NOT NULL,
    size     INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (customer, sha256)
) STRICT;

CREATE TABLE unit (
    name        TEXT PRIMARY KEY,
    customer    TEXT NOT NULL REFERENCES customer (name),
    profile     TEXT NOT NULL,
    channel     TEXT NOT NULL,
    -- The current incarnation; 0 before birth was begun. Every lower one is fenced.
    incarnation INTEGER NOT NULL DEFAULT 0,
    created     INTEGER NOT NULL
) STRICT;

CREATE TABLE incarnation (
    unit       TEXT NOT NULL REFERENCES unit (name),
    number     INTEGER NOT NULL,
    reason     TEXT NOT NULL CHECK (reason IN ('birth', 'replace')),
    begun      INTEGER NOT NULL,
    -- When its health gate first passed.
    in_service INTEGER,
    check_in   TEXT,
    seen       INTEGER,
    PRIMARY KEY (unit, number)
) STRICT;

CREATE TABLE configuration (
    unit       TEXT NOT NULL REFERENCES unit (name),
    generation INTEGER NOT NULL,
    document   TEXT NOT NULL,
    created    INTEGER NOT NULL,
    PRIMARY KEY (unit, generation)
) STRICT;

-- Ciphertext only. No version is ever replaced or removed.
CREATE TABLE escrow (
    unit        TEXT NOT NULL REFERENCES unit (name),
    version     INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    age         TEXT NOT NULL,
    created     INTEGER NOT NULL,
    PRIMARY KEY (unit, version)
) STRICT;

-- Secrets sealed by an operator to the device of one incarnation.
CREATE TABLE device_secrets (
    unit        TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    age         TEXT NOT NULL,
    created     INTEGER NOT NULL,
    PRIMARY KEY (unit, incarnation),
    FOREIGN KEY (unit, incarnation) REFERENCES incarnation (unit, number)
) STRICT;

CREATE TABLE command (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    unit      TEXT NOT NULL REFERENCES unit (name),
    id        TEXT NOT NULL UNIQUE,
    document  TEXT NOT NULL,
    created   INTEGER NOT NULL,
    delivered INTEGER
) STRICT;

CREATE TABLE command_report (
    unit     TEXT NOT NULL REFERENCES unit (name),
    id       TEXT NOT NULL,
    document TEXT NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (unit, id)
) STRICT;

CREATE TABLE machine (
    code        TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    facts       TEXT NOT NULL,
    keys        TEXT NOT NULL,
    installer   TEXT NOT NULL,
    progress    TEXT,
    ticket      TEXT REFERENCES ticket (id),
    first_seen  INTEGER NOT NULL,
    last_seen   INTEGER NOT NULL
) STRICT;

CREATE TABLE ticket (
    id          TEXT PRIMARY KEY,
    machine     TEXT NOT NULL REFERENCES machine (code),
    unit        TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    document    TEXT NOT NULL,
    expires     INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    FOREIGN KEY (unit, incarnation) REFERENCES incarnation (unit, number)
) STRICT;

-- The ledger: a row burns the ticket, and an incarnation is born once.
CREATE TABLE redemption (
    ticket      TEXT PRIMARY KEY REFERENCES ticket (id),
    fingerprint TEXT NOT NULL,
    unit        TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    enrolment   TEXT NOT NULL,
    created     INTEGER NOT NULL,
    UNIQUE (unit, incarnation),
    FOREIGN KEY (unit, incarnation) REFERENCES incarnation (unit, number)
) STRICT;

CREATE TABLE release_file (
    release TEXT NOT NULL,
    path    TEXT NOT NULL,
    sha256  TEXT NOT NULL,
    size    INTEGER NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (release, path)
) STRICT;

-- Releases whose every file was compared with the signed manifest.
CREATE TABLE release (
    version  TEXT PRIMARY KEY,
    manifest TEXT NOT NULL,
    created  INTEGER NOT NULL
) STRICT;

CREATE TABLE channel (
    name     TEXT PRIMARY KEY,
    version  INTEGER NOT NULL,
    release  TEXT NOT NULL,
    manifest TEXT NOT NULL,
    document TEXT NOT NULL,
    signed   INTEGER NOT NULL
) STRICT;

CREATE TABLE fence_attempt (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    unit        TEXT NOT NULL REFERENCES unit (name),
    incarnation INTEGER NOT NULL,
    place       TEXT NOT NULL,
    address     TEXT NOT NULL,
    time        INTEGER NOT NULL
) STRICT;

CREATE INDEX fence_attempt_unit ON fence_attempt (unit, number);

CREATE TABLE event (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    time    INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    unit    TEXT,
    machine TEXT,
    mac     TEXT,
    message TEXT NOT NULL
) STRICT;
