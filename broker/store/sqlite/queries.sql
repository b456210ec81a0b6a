-- Every statement of the store, by name. `:numbers` is a JSON array; `:expect` is a set of states, as bits.
-- A partial index is used only where its own predicate stands in the query (https://www.sqlite.org/partialindex.html, 3).
-- OR FAIL saves SQLite the copies that it makes to undo one statement: the savepoint around each operation undoes it.
-- 9223372036854775807 stands for "no end".

-- name: reserve
INSERT OR FAIL INTO lease (number, state, due, connection, token, family, live, ask, facts, password)
SELECT :number, 0, :due, :connection, :token, :family, 1, :ask, :facts, :password
WHERE EXISTS (
    SELECT 1 FROM token
    WHERE number = :token AND (expires IS NULL OR expires > :now) AND (:per_token = 0 OR live < :per_token)
) AND (
    :asker IN (0, :token) OR EXISTS (SELECT 1 FROM token WHERE number = :asker AND (expires IS NULL OR expires > :now))
) AND (
    :per_role = 0 OR (SELECT live FROM path WHERE family = :family) < :per_role
) AND NOT EXISTS (SELECT 1 FROM lease WHERE ask = :ask);

-- name: prepare
INSERT OR FAIL INTO lease (number, state, due, connection, token, family, live, facts, password)
VALUES (:number, 1, :due, :connection, 0, :family, 0, :facts, :password);

-- name: hand_out
UPDATE OR FAIL lease
SET state = 3, attempts = 0, live = 1, unsettled = 1, token = :token, ask = :ask, facts = :facts, password = :password,
    due = min(:due, (SELECT coalesce(expires, 9223372036854775807) FROM token WHERE number = :token))
WHERE number = :number AND state = 2 AND family = :family AND EXISTS (
    SELECT 1 FROM token
    WHERE number = :token AND (expires IS NULL OR expires > :now) AND (:per_token = 0 OR live < :per_token)
) AND (
    :asker IN (0, :token) OR EXISTS (SELECT 1 FROM token WHERE number = :asker AND (expires IS NULL OR expires > :now))
) AND (
    :per_role = 0 OR (SELECT live FROM path WHERE family = :family) < :per_role
) AND NOT EXISTS (SELECT 1 FROM lease WHERE ask = :ask);

-- name: why_refused
SELECT
    NOT EXISTS (SELECT 1 FROM token WHERE number = :token AND (expires IS NULL OR expires > :now))
        OR :asker NOT IN (0, :token)
        AND NOT EXISTS (SELECT 1 FROM token WHERE number = :asker AND (expires IS NULL OR expires > :now)) AS token_ended,
    EXISTS (SELECT 1 FROM lease WHERE ask = :ask) AS asked_before,
    :per_role <> 0 AND coalesce((SELECT live FROM path WHERE family = :family), 0) >= :per_role AS role_limit,
    :per_token <> 0 AND coalesce((SELECT live FROM token WHERE number = :token), 0) >= :per_token AS token_limit;

-- name: move_on
-- To reserved, prepared or active. A lease that has a token ends with it, at once when it has ended.
-- New facts give it a new time; without them it is only put off, once it was claimed also beyond the end of its token.
UPDATE OR FAIL lease
SET state = :to, stage = :stage, attempts = :attempts, facts = coalesce(:facts, facts),
    password = CASE WHEN :facts IS NULL THEN password ELSE :password END,
    overdue = CASE WHEN :facts IS NULL THEN overdue END,
    due = CASE WHEN token = 0 OR (:facts IS NULL AND overdue IS NOT NULL) THEN :due ELSE
        min(:due, coalesce((SELECT coalesce(expires, 9223372036854775807) FROM token WHERE number = lease.token), :now)) END
WHERE number = :number AND (1 << state) & :expect AND (:epoch IS NULL OR epoch = :epoch) AND (
    :token IS NULL OR EXISTS (SELECT 1 FROM token WHERE number = :token AND (expires IS NULL OR expires > :now)) AND (
        lease.token IN (0, :token) OR EXISTS (SELECT 1 FROM token WHERE number = lease.token AND (expires IS NULL OR expires > :now))
    )
);

-- name: move_to_revoking
-- To revoking, stuck or its grace. What is in its grace waits to be ended until its login is off, and where it is put off after that.
UPDATE OR FAIL lease
SET state = :to, stage = :stage, attempts = :attempts, facts = coalesce(:facts, facts), due = :due,
    password = NULL, ask = NULL, unsettled = 0,
    overdue = CASE WHEN :to = 4 OR (:to = 7 AND (:stage = 0 OR :facts IS NULL)) THEN overdue END
WHERE number = :number AND (1 << state) & :expect AND (:epoch IS NULL OR epoch = :epoch) AND (
    :token IS NULL OR EXISTS (SELECT 1 FROM token WHERE number = :token AND (expires IS NULL OR expires > :now))
);

-- name: move_to_gone
UPDATE OR FAIL lease
SET state = :to, stage = :stage, attempts = :attempts, facts = coalesce(:facts, facts), due = :due,
    password = NULL, ask = NULL, unsettled = 0, live = 0, overdue = NULL
WHERE number = :number AND (1 << state) & :expect AND (:epoch IS NULL OR epoch = :epoch) AND (
    :token IS NULL OR EXISTS (SELECT 1 FROM token WHERE number = :token AND (expires IS NULL OR expires > :now))
);

-- name: move_from_gone
-- To revoking once more. Its token may be no more; its path is known again.
UPDATE OR FAIL lease
SET state = :to, stage = :stage, attempts = :attempts, facts = :facts, due = :due, live = (token <> 0)
WHERE number = :number AND state = 6 AND (:epoch IS NULL OR epoch = :epoch);

-- name: step_to_revoking
UPDATE lease SET state = :to, stage = :stage, due = :due, password = NULL, ask = NULL, unsettled = 0
WHERE number IN (SELECT value FROM json_each(:numbers)) AND (1 << state) & :expect AND epoch = :epoch
RETURNING number;

-- name: step_on
-- Touches no index.
UPDATE lease SET stage = :stage
WHERE number IN (SELECT value FROM json_each(:numbers)) AND state = 4 AND (1 << state) & :expect AND epoch = :epoch
RETURNING number;

-- name: step_to_gone
UPDATE lease SET state = :to, stage = :stage, due = :due, password = NULL, ask = NULL, unsettled = 0, live = 0, overdue = NULL
WHERE number IN (SELECT value FROM json_each(:numbers)) AND (1 << state) & :expect AND epoch = :epoch
RETURNING number;

-- name: places
-- The clear columns that sealed values are bound to.
SELECT number, connection, token, family FROM lease WHERE number IN (SELECT value FROM json_each(:numbers));

-- name: lease
SELECT number, state, stage, due, epoch, attempts, connection, token, family, facts, password FROM lease WHERE number = :number;

-- name: asked
SELECT number, state, stage, due, epoch, attempts, connection, token, family, facts, password FROM lease WHERE ask = :ask;

-- name: free_ask
UPDATE lease SET ask = NULL, password = NULL WHERE ask = :ask;

-- name: prepared
SELECT number, state, stage, due, epoch, attempts, connection, token, family, facts, password FROM lease
WHERE family = :family AND state IN (1, 2) AND state = 2 AND number > :after ORDER BY number LIMIT :limit;

-- name: pool_size
SELECT count(*) FROM lease WHERE family = :family AND state IN (1, 2);

-- name: settle
UPDATE lease SET unsettled = 0 WHERE number IN (SELECT value FROM json_each(:numbers)) AND unsettled = 1;

-- name: unsettled
SELECT number, state, stage, due, epoch, attempts, connection, token, family, facts, password FROM lease
WHERE unsettled = 1 AND number > :after AND (:connection IS NULL OR connection = :connection) ORDER BY number LIMIT :limit;

-- name: connections
-- The connections that have leases, found by one index seek each.
WITH RECURSIVE seen (connection) AS (
    SELECT min(connection) FROM lease
    UNION ALL
    SELECT (SELECT min(connection) FROM lease WHERE connection > seen.connection) FROM seen WHERE seen.connection IS NOT NULL
)
SELECT connection FROM seen WHERE connection IS NOT NULL;

-- name: due
SELECT due, number FROM lease WHERE connection = :connection AND state = :state AND due <= :until ORDER BY due LIMIT :limit;

-- name: claim
UPDATE lease SET epoch = epoch + 1, overdue = coalesce(overdue, due), due = :due
WHERE number IN (SELECT value FROM json_each(:numbers)) RETURNING number, overdue;

-- name: release_claims
-- Of what had merely fallen due: the first step would have made it revoking. And of what was in its grace.
UPDATE lease SET due = overdue, overdue = NULL WHERE overdue IS NOT NULL AND state IN (3, 7);

-- name: overdue_claimed
SELECT count(*), min(overdue) FROM (
    SELECT overdue FROM lease WHERE overdue IS NOT NULL AND state <> 5 ORDER BY overdue LIMIT :limit
);

-- name: overdue_unclaimed
-- The limit is one of rows looked at: of those that were claimed before there may be many.
SELECT count(*), min(due) FROM (
    SELECT due, overdue FROM lease WHERE connection = :connection AND state = :state AND due <= :until ORDER BY due LIMIT :limit
) WHERE overdue IS NULL;

-- name: leases
SELECT number, state, stage, due, epoch, attempts, connection, token, family, facts, password FROM lease
WHERE number IN (SELECT value FROM json_each(:numbers)) ORDER BY number;

-- name: leases_at
-- A page of the run of the due index that holds them.
SELECT number, state, stage, due, epoch, attempts, connection, token, family, facts, password FROM lease
WHERE connection = :connection AND state = :state AND (due, number) > (:due, :after) ORDER BY due, number LIMIT :limit;

-- name: first_due
SELECT min(due) FROM lease WHERE connection = :connection AND state = :state;

-- name: hasten
UPDATE lease SET due = :now WHERE number IN (
    SELECT number FROM lease WHERE connection = :connection AND state = :state AND due > :now LIMIT :limit
);

-- name: end_family
UPDATE lease SET state = 4, stage = 0, attempts = 0, due = :now, ask = NULL, unsettled = 0, password = NULL WHERE number IN (
    SELECT number FROM lease
    WHERE family = :family AND live = 1 AND state IN (3, 7) AND number > :after
    ORDER BY number LIMIT :limit
) RETURNING number;

-- name: end_connection
UPDATE lease SET state = 4, stage = 0, attempts = 0, due = :now, ask = NULL, unsettled = 0, password = NULL WHERE number IN (
    SELECT number FROM lease WHERE connection = :connection AND state IN (3, 7) LIMIT :limit
);

-- name: last_of_connection
SELECT max(due) FROM lease WHERE connection = :connection AND state = 3;

-- name: last_of_family
-- Of a page, beyond which `number` leads on.
SELECT max(CASE WHEN state = 3 THEN due END), max(number) FROM (
    SELECT state, due, number FROM lease WHERE family = :family AND live = 1 AND number > :after ORDER BY number LIMIT :limit
);

-- name: live_of_family
SELECT live FROM path WHERE family = :family;

-- name: numbers_of_family
SELECT number FROM lease
WHERE family = :family AND live = 1 AND number > :after ORDER BY number LIMIT :limit;

-- name: leases_in_common_state
-- For states that most rows are in: by number, past the others.
SELECT number FROM lease WHERE state = :state AND number > :after ORDER BY number LIMIT :limit;

-- name: leases_in_rare_state
-- For states that few rows are in: all of them, from the index alone.
SELECT number FROM lease
WHERE connection = :connection AND state = :state AND number > :after ORDER BY number LIMIT :limit;

-- name: count
SELECT count(*) FROM lease WHERE connection = :connection AND state = :state;

-- name: remove_leases
DELETE FROM lease WHERE number IN (SELECT value FROM json_each(:numbers));

-- name: keep_highest
-- The highest number stays known when its row goes.
UPDATE counter SET value = max(
    value, coalesce((SELECT max(number) FROM lease), 0), coalesce((SELECT max(number) FROM token), 0)
) WHERE name = 'number';

-- name: highest
SELECT max(
    coalesce((SELECT max(value) FROM counter), 0),
    coalesce((SELECT max(number) FROM lease), 0),
    coalesce((SELECT max(number) FROM token), 0)
);

-- name: path_known
SELECT 1 FROM path WHERE family = :family;

-- name: add_path
INSERT INTO path (family, path) VALUES (:family, :path);

-- name: live_paths
SELECT family, path FROM path WHERE live > 0;

-- name: crowded_paths
SELECT family, path, live FROM path WHERE live >= :least;

-- name: pool_paths
SELECT family, path FROM path WHERE EXISTS (SELECT 1 FROM lease WHERE family = path.family AND state IN (1, 2));

-- name: remove_idle_paths
DELETE FROM path WHERE live = 0 AND NOT EXISTS (SELECT 1 FROM lease WHERE family = path.family AND state IN (1, 2));

-- name: add_token
INSERT INTO token (number, parent, expires, uses, facts)
SELECT :number, :parent, :expires, :uses, :facts
WHERE :parent = 0 OR EXISTS (SELECT 1 FROM token WHERE number = :parent AND (expires IS NULL OR expires > :now));

-- name: token
SELECT number, parent, expires, uses, facts FROM token WHERE number = :number AND (expires IS NULL OR expires > :now);

-- name: head_of_token
-- Up from a token to the one without a parent, over so many generations.
WITH RECURSIVE line (number, parent, generation) AS (
    SELECT number, parent, 0 FROM token WHERE number = :number
    UNION ALL
    SELECT token.number, token.parent, generation + 1 FROM line JOIN token ON token.number = line.parent
    WHERE line.parent <> 0 AND generation < :generations
)
SELECT number, parent, expires, uses, facts FROM token
WHERE number = (SELECT number FROM line WHERE parent = 0) AND (expires IS NULL OR expires > :now);

-- name: tokens
SELECT number, parent, expires, uses, facts FROM token
WHERE number > :after AND (expires IS NULL OR expires > :now) ORDER BY number LIMIT :limit;

-- name: last_of_tokens
SELECT max(number), count(*) FROM (SELECT number FROM token WHERE number > :after ORDER BY number LIMIT :limit);

-- name: crowded_tokens
SELECT number, live FROM token WHERE number > :after AND number <= :last AND live >= :least;

-- name: renew_token
UPDATE token SET expires = :expires, facts = :facts WHERE number = :number;

-- name: descendants_beyond
-- One that ends in time is passed over with its own children: they end no later.
WITH RECURSIVE beyond (number) AS (
    SELECT number FROM token
    WHERE parent = :number AND parent <> 0 AND coalesce(expires, 9223372036854775807) > :until
    UNION
    SELECT token.number FROM beyond JOIN token ON token.parent = beyond.number AND token.parent <> 0
    WHERE coalesce(token.expires, 9223372036854775807) > :until
)
SELECT number, parent, expires, uses, facts FROM token WHERE number IN (SELECT number FROM beyond) ORDER BY number;

-- name: clamp_leases
-- They fall due with their token.
UPDATE lease SET due = :until
WHERE token IN (SELECT value FROM json_each(:numbers)) AND live = 1 AND state = 3 AND due > :until;

-- name: end_leases_of_tokens
UPDATE lease SET state = 4, stage = 0, attempts = 0, due = :now, ask = NULL, unsettled = 0, password = NULL
WHERE token IN (SELECT value FROM json_each(:numbers)) AND live = 1 AND state IN (3, 7);

-- name: use_token
UPDATE token SET uses = uses - 1
WHERE number = :number AND uses > 0 AND (expires IS NULL OR expires > :now) RETURNING uses;

-- name: with_children
WITH RECURSIVE doomed (number) AS (
    SELECT token.number FROM json_each(:numbers) JOIN token ON token.number = json_each.value
    UNION
    SELECT token.number FROM doomed JOIN token ON token.parent = doomed.number AND token.parent <> 0
)
SELECT number FROM doomed ORDER BY number;

-- name: children
SELECT number, parent, expires, uses, facts FROM token
WHERE parent IN (SELECT value FROM json_each(:numbers)) AND parent <> 0;

-- name: orphan
UPDATE token SET parent = 0, facts = :facts WHERE number = :number;

-- name: remove_tokens
DELETE FROM token WHERE number IN (SELECT value FROM json_each(:numbers));

-- name: expired_tokens
SELECT number FROM token WHERE expires IS NOT NULL AND expires <= :now ORDER BY expires LIMIT :limit;

-- name: next_revision
UPDATE counter SET value = value + 1 WHERE name = 'revision' RETURNING value;

-- name: add_document
INSERT INTO document (number, handle, revision, label, body) VALUES (:number, :handle, :revision, :label, :body);

-- name: document_number
SELECT number FROM document WHERE handle = :handle AND deleted = 0;

-- name: document
SELECT number, revision, deleted, label, body FROM document WHERE number = :number;

-- name: change_document
UPDATE document SET revision = :revision, body = :body WHERE number = :number;

-- name: delete_document
UPDATE document SET revision = :revision, deleted = 1 WHERE number = :number;

-- name: purge_document
DELETE FROM document WHERE number = :number AND deleted = 1;

-- name: changes
SELECT number, revision, deleted, label, body FROM document WHERE revision > :revision ORDER BY revision;

-- name: vital
SELECT sealed FROM vital WHERE name = :name;

-- name: keep_vital
INSERT INTO vital (name, sealed) VALUES (:name, :sealed) ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed;
