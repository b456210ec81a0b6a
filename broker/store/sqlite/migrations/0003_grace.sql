-- A lease may be in its grace (7): its time is over and its login off, and its open sessions may go on until `due`. While it belongs to a
-- token it is live. A CHECK can't be altered, so the table is made anew (https://www.sqlite.org/lang_altertable.html, section 7).

CREATE TABLE lease_with_grace (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 7),
    stage INTEGER NOT NULL DEFAULT 0 CHECK (stage BETWEEN 0 AND 5),
    due INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    connection INTEGER NOT NULL,
    token INTEGER NOT NULL,
    family INTEGER NOT NULL,
    live INTEGER NOT NULL CHECK (live = (token <> 0 AND state IN (0, 3, 4, 5, 7))),
    unsettled INTEGER NOT NULL DEFAULT 0 CHECK (unsettled IN (0, 1)),
    ask BLOB,
    facts BLOB NOT NULL,
    password BLOB,
    overdue INTEGER,
    CHECK (stage = 0 OR state >= 4),
    CHECK (token <> 0 OR state NOT IN (0, 3, 7)),
    CHECK (token = 0 OR state NOT IN (1, 2)),
    CHECK (ask IS NULL OR state IN (0, 3)),
    CHECK (unsettled = 0 OR state = 3),
    CHECK (password IS NULL OR state <= 3)
) STRICT;

INSERT INTO lease_with_grace
SELECT number, state, stage, due, epoch, attempts, connection, token, family, live, unsettled, ask, facts, password, overdue FROM lease;

DROP TABLE lease;

ALTER TABLE lease_with_grace RENAME TO lease;

CREATE INDEX lease_by_due ON lease (connection, state, due);
CREATE INDEX lease_by_family ON lease (family, number) WHERE live = 1;
CREATE INDEX lease_by_token ON lease (token, number) WHERE live = 1;
CREATE INDEX lease_in_pool ON lease (family, state, number) WHERE state IN (1, 2);
CREATE INDEX lease_unsettled ON lease (number) WHERE unsettled = 1;
CREATE UNIQUE INDEX lease_by_ask ON lease (ask) WHERE ask IS NOT NULL;
CREATE INDEX lease_overdue ON lease (overdue) WHERE overdue IS NOT NULL;

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
