-- Every query of the PostgreSQL engine. Connections run with search_path pg_catalog; facts: docs of the manual, chapter 53,
-- "System Catalogs". What changes roles is built in the code, since utility statements take no parameters.

-- :name greeting
-- What a new connection leads to, and what our own login may do there. On 16 and later membership is not a right to use.
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS number,
       NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS writable,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS server_ms,
       pg_postmaster_start_time()::text AS started,
       current_user::text AS login,
       current_database()::text AS database,
       pg_backend_pid() AS pid,
       (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid())) AS backend_start,
       r.rolsuper AS superuser,
       pg_has_role(r.oid, 'pg_signal_backend', 'USAGE') AS signals
FROM pg_roles r
WHERE r.rolname = current_user

-- :name cluster
-- Made by initdb; standbys and physical copies have it too. Every role may call this, unless an operator took that away.
SELECT system_identifier::text FROM pg_control_system()

-- :name cluster_facts
-- Stands in for it: OIDs of the home database ($1) and of our login, which no restart or failover changes.
SELECT format('database %s, login %s', d.oid, r.oid) FROM pg_database d, pg_roles r WHERE d.datname = $1 AND r.rolname = current_user

-- :name server_clock
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- :name names
-- $1 OIDs
SELECT oid, rolname::text AS name FROM pg_roles WHERE oid = ANY ($1::oid[])

-- :name ours
-- Which roles are the users asked for: two of OID, name and marker must agree, so neither a stranger's role under the
-- same name nor a reused OID is touched. $1 OIDs (0 where unknown), $2 names, $3 markers; place counts from 1.
WITH asked AS (
  SELECT place, oid AS asked_oid, name::name AS asked_name, marker
  FROM unnest($1::oid[], $2::text[], $3::text[]) WITH ORDINALITY AS a (oid, name, marker, place)
), candidates AS (
  SELECT asked.*, r.oid, r.rolname FROM asked JOIN pg_roles r ON r.oid = asked_oid
  UNION
  SELECT asked.*, r.oid, r.rolname FROM asked JOIN pg_roles r ON r.rolname = asked_name
)
SELECT place, oid, rolname::text AS name
FROM candidates
WHERE CASE WHEN oid = asked_oid AND rolname = asked_name THEN true
    -- Looked up only where it decides: it is a query for each role.
    ELSE coalesce(marker <> '' AND shobj_description(oid, 'pg_authid') = marker, false) END

-- :name marked
-- One page of the users that carry this broker's marker. $1 LIKE pattern, $2 last OID seen, $3 rows.
SELECT r.oid, r.rolname::text AS name, r.rolcanlogin AS can_login, d.description AS marker
FROM pg_shdescription d JOIN pg_roles r ON r.oid = d.objoid
WHERE d.classoid = 'pg_authid'::regclass AND d.description LIKE $1 AND r.oid > $2
ORDER BY r.oid
LIMIT $3

-- :name sessions
-- $1 OIDs. A plain CREATEROLE login sees neither state nor type of others' sessions, so nothing is filtered by them.
SELECT usesysid AS oid, pid FROM pg_stat_activity WHERE usesysid = ANY ($1::oid[])

-- :name terminate_sessions
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = ANY ($1::oid[])

-- :name terminate_backends
-- Backends of our own calls that were given up; pid and start together name one. $1 pids, $2 starts.
SELECT a.pid, pg_terminate_backend(a.pid)
FROM pg_stat_activity a JOIN unnest($1::int[], $2::timestamptz[]) AS late (pid, started)
  ON a.pid = late.pid AND a.backend_start = late.started

-- :name terminate_earlier_boots
-- Backends of processes of this broker that are dead. $1 LIKE pattern of the broker's sessions, $2 name of this boot's.
SELECT a.pid, pg_terminate_backend(a.pid)
FROM pg_stat_activity a
WHERE a.application_name LIKE $1 AND a.application_name <> $2 AND a.usename = current_user AND a.pid <> pg_backend_pid()

-- :name prepared_transactions
-- $1 names
SELECT gid, database::text AS database, owner::text AS owner FROM pg_prepared_xacts WHERE owner = ANY ($1::name[])

-- :name dependencies
-- What is owned by or granted to roles, in every database; described where it is shared or in this one. $1 OIDs.
SELECT d.refobjid AS oid, coalesce(db.datname::text, '') AS database, d.dbid = 0 AS shared, d.deptype::text AS kind,
       d.classid::regclass::text AS class,
       CASE WHEN d.dbid IN (0, here.oid) THEN pg_describe_object(d.classid, d.objid, d.objsubid) END AS object
FROM pg_shdepend d
CROSS JOIN (SELECT oid FROM pg_database WHERE datname = current_database()) here
LEFT JOIN pg_database db ON db.oid = d.dbid
WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = ANY ($1::oid[])

-- :name granted_memberships
-- Memberships that users granted. Up to version 15 they outlive the grantor; later ones are dependencies. $1 OIDs.
SELECT m.grantor AS oid, g.rolname::text AS role, u.rolname::text AS member
FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member
WHERE m.grantor = ANY ($1::oid[])

-- :name is_member
-- Whether $1 (OID) could become $2 (name) by SET ROLE; null where there is no such role.
SELECT pg_has_role($1::oid, r.oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
FROM pg_roles r WHERE r.rolname = $2

-- :name owned_code
-- What of $1 (OID) in this database would run with the rights of whoever owned it next.
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS object
FROM pg_shdepend d LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = $1::oid AND d.deptype = 'o'
  AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND NOT (coalesce(c.relkind IN ('r', 'p', 'S', 'i', 'I', 't', 'c'), false)
    OR d.classid IN ('pg_namespace'::regclass, 'pg_type'::regclass, 'pg_largeobject'::regclass, 'pg_collation'::regclass,
      'pg_statistic_ext'::regclass, 'pg_ts_config'::regclass, 'pg_ts_dict'::regclass,
      'pg_default_acl'::regclass, 'pg_user_mapping'::regclass))
LIMIT 5

-- :name logins_in_progress
-- Processes that hold or await the lock of a starting session on its database and show no user yet. Prepared transactions have no pid.
SELECT l.pid, l.virtualtransaction AS attempt
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'object' AND l.database = 0 AND l.classid = 'pg_database'::regclass AND l.pid IS NOT NULL AND a.usesysid IS NULL

-- :name end_as_each
-- As each of USERS (OIDs), tries to end PROCESSES (pids). What it changes of a role is undone with the subtransaction; signals are not.
DO $broker$
DECLARE
  one record;
  membership record;
  process int;
BEGIN
  FOR one IN
    SELECT r.oid, r.rolname, r.rolsuper, EXISTS (
        WITH RECURSIVE above (role) AS (
          SELECT roleid FROM pg_auth_members WHERE member = r.oid
          UNION SELECT m.roleid FROM above JOIN pg_auth_members m ON m.member = above.role)
        SELECT FROM above JOIN pg_roles g ON g.oid = above.role WHERE g.rolcanlogin OR g.rolname = 'pg_signal_backend') AS shares
    FROM pg_roles r WHERE r.oid = ANY ('{USERS}'::oid[])
  LOOP
    BEGIN
      IF one.rolsuper THEN
        EXECUTE format('ALTER ROLE %I NOSUPERUSER', one.rolname);
      END IF;
      IF one.shares THEN
        FOR membership IN
          SELECT m.roleid::regrole AS role, CASE WHEN current_setting('server_version_num')::int >= 160000
              THEN 'GRANTED BY ' || m.grantor::regrole ELSE '' END AS granted_by
          FROM pg_auth_members m WHERE m.member = one.oid
        LOOP
          EXECUTE format('REVOKE %s FROM %I %s CASCADE', membership.role, one.rolname, membership.granted_by);
        END LOOP;
      END IF;
      EXECUTE format('SET LOCAL ROLE %I', one.rolname);
      IF NOT has_function_privilege('pg_terminate_backend(int, bigint)', 'EXECUTE') THEN
        RAISE insufficient_privilege;
      END IF;
      FOREACH process IN ARRAY '{PROCESSES}'::int[] LOOP
        BEGIN
          IF pg_terminate_backend(process) THEN
            RAISE INFO 'broker ended % %', one.oid, process;
          END IF;
        EXCEPTION WHEN insufficient_privilege THEN
          NULL;  -- somebody else's
        END;
      END LOOP;
      RAISE EXCEPTION USING ERRCODE = 'BR006';
    EXCEPTION
      WHEN SQLSTATE 'BR006' THEN
        NULL;
      WHEN OTHERS THEN
        RAISE INFO 'broker untold %', one.oid;
    END;
  END LOOP;
END $broker$
