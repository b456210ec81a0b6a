-- What the store keeps. "sealed" is AES-256-GCM under the keyring, bound to table, row, column and the clear columns named.
--
--   vital      name | sealed            the keyring (under the master key), the broker's id, the clock, the audit head
--   counter    name | value             the newest revision; the highest number of rows that are no longer there
--   lease      number state stage due epoch attempts connection token family live unsettled ask | facts password
--                                       both sealed with connection, token and family; password only until it is not needed
--   path       family live | path       a path that leases have, by its keyed hash; sealed
--   token      number parent expires uses live | facts         sealed with expires; holds the keyed hash of its text too
--   document   number handle revision deleted | label body     handle is a keyed hash of kind and name; both sealed
--
-- lease.family is a keyed 64-bit hash of the path. lease.live is 1 while the lease belongs to a token and is reserved (0),
-- active (3), revoking (4) or stuck (5); then it counts in path.live and token.live. It is a column of its own so that indexes
-- over live leases stay as they are while the state changes.

CREATE TABLE vital (
    name TEXT PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counter (name, value) VALUES ('revision', 0), ('number', 0);

CREATE TABLE path (
    family INTEGER PRIMARY KEY,
    live INTEGER NOT NULL DEFAULT 0 CHECK (live >= 0),
    path BLOB NOT NULL
) STRICT;

CREATE TABLE token (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    parent INTEGER NOT NULL,
    expires INTEGER,
    uses INTEGER CHECK (uses >= 0),
    live INTEGER NOT NULL DEFAULT 0 CHECK (live >= 0),
    facts BLOB NOT NULL
) STRICT;

CREATE INDEX token_by_parent ON token (parent) WHERE parent <> 0;
CREATE INDEX token_by_expiry ON token (expires) WHERE expires IS NOT NULL;

CREATE TABLE lease (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 6),
    stage INTEGER NOT NULL DEFAULT 0 CHECK (stage BETWEEN 0 AND 5),
    due INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    connection INTEGER NOT NULL,
    token INTEGER NOT NULL,
    family INTEGER NOT NULL,
    live INTEGER NOT NULL CHECK (live = (token <> 0 AND state IN (0, 3, 4, 5))),
    unsettled INTEGER NOT NULL DEFAULT 0 CHECK (unsettled IN (0, 1)),
    ask BLOB,
    facts BLOB NOT NULL,
    password BLOB,
    CHECK (stage = 0 OR state >= 4),
    CHECK (token <> 0 OR state NOT IN (0, 3)),
    CHECK (token = 0 OR state NOT IN (1, 2)),
    CHECK (ask IS NULL OR state IN (0, 3)),
    CHECK (unsettled = 0 OR state = 3),
    CHECK (password IS NULL OR state <= 3)
) STRICT;

-- One index says what is next to be done, for one connection or, visiting each connection once, for all: so the backlog of a
-- dead database is stepped over, not read through.
CREATE INDEX lease_by_due ON lease (connection, state, due);
CREATE INDEX lease_by_family ON lease (family, number) WHERE live = 1;
CREATE INDEX lease_by_token ON lease (token, number) WHERE live = 1;
CREATE INDEX lease_in_pool ON lease (family, state, number) WHERE state IN (1, 2);
CREATE INDEX lease_unsettled ON lease (number) WHERE unsettled = 1;
CREATE UNIQUE INDEX lease_by_ask ON lease (ask) WHERE ask IS NOT NULL;

CREATE TRIGGER lease_counted_new AFTER INSERT ON lease WHEN NEW.live = 1
BEGIN
    UPDATE path SET live = live + 1 WHERE family = NEW.family;
    UPDATE token SET live = live + 1 WHERE number = NEW.token;
END;

CREATE TRIGGER lease_counted AFTER UPDATE OF live ON lease WHEN NEW.live > OLD.live
BEGIN
    UPDATE path SET live = live + 1 WHERE family = NEW.family;
    UPDATE token SET live = live + 1 WHERE number = NEW.token;
END;

CREATE TRIGGER lease_uncounted AFTER UPDATE OF live ON lease WHEN NEW.live < OLD.live
BEGIN
    UPDATE path SET live = live - 1 WHERE family = OLD.family;
    UPDATE token SET live = live - 1 WHERE number = OLD.token;
END;

CREATE TRIGGER lease_keeps_its_place AFTER UPDATE OF connection, token, family ON lease
WHEN NEW.connection <> OLD.connection OR NEW.family <> OLD.family OR (OLD.token <> 0 AND NEW.token <> OLD.token)
BEGIN
    SELECT RAISE(FAIL, 'a lease keeps its connection, token and path');
END;

CREATE TABLE document (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    handle INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1)),
    label BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX document_by_handle ON document (handle) WHERE deleted = 0;
CREATE UNIQUE INDEX document_by_revision ON document (revision);
