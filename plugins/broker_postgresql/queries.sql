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

-- :name may_set
-- $1 settings that only a superuser may change, unless the right to was given.
SELECT name FROM unnest($1::text[]) AS name WHERE has_parameter_privilege(name, 'SET')

-- :name cluster
-- Made by initdb; standbys and physical copies have it too. Every role may call this, unless an operator took that away.
SELECT system_identifier::text FROM pg_control_system()

-- :name cluster_facts
-- Stands in for it: OIDs of the home database ($1) and of our login, which no restart or failover changes.
SELECT format('database %s, login %s', d.oid, r.oid) FROM pg_database d, pg_roles r WHERE d.datname = $1 AND r.rolname = current_user

-- :name timeline
-- A promotion begins another one; until when it has its predecessor's commits, the server knows until it restarts.
SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
       (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000)::bigint AS kept_until_ms
WHERE NOT pg_is_in_recovery()

-- :name server_clock
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- :name standing
-- Whether users may log in, and until when. $1 OIDs.
SELECT oid, rolcanlogin AS can_login,
       CASE WHEN isfinite(rolvaliduntil) THEN (extract(epoch FROM rolvaliduntil) * 1000)::bigint END AS expires_ms
FROM pg_roles WHERE oid = ANY ($1::oid[])

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

-- :name abandoned
-- Sessions of roles that are no more. A role that was made after the query began looks the same.
SELECT a.usesysid AS oid, count(*) AS sessions
FROM pg_stat_activity a
WHERE a.usesysid <> 0 AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.usesysid)
GROUP BY a.usesysid

-- :name terminate_sessions
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = ANY ($1::oid[])

-- :name given_up
-- Backends of calls that were given up; pid and start together name one, where another login's start may be seen. $1 pids, $2 starts,
-- $3 logins.
SELECT a.pid, a.usesysid AS oid, a.usename::text AS login, a.application_name AS application
FROM pg_stat_activity a JOIN unnest($1::int[], $2::timestamptz[], $3::text[]) AS late (pid, started, login)
  ON a.pid = late.pid AND coalesce(a.backend_start = late.started, a.usename = late.login)

-- :name earlier_boots
-- Backends of processes of this broker that are dead, whichever login they had: the connection's may have been changed since. Anybody can
-- call its session so; whoever could not become a role that makes roles sent nothing that matters, and holds up nobody. What another
-- login's session does is hidden; that it is in a transaction shows by its lock on that. $1 LIKE pattern of the broker's sessions, $2 name of
-- this boot's.
SELECT a.pid, a.usesysid AS oid, a.usename::text AS login, a.application_name AS application,
       EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'virtualxid') AS busy
FROM pg_stat_activity a
WHERE a.application_name LIKE $1 AND a.application_name <> $2 AND a.pid <> pg_backend_pid() AND (
  a.usename = current_user
  OR EXISTS (SELECT FROM pg_roles r WHERE (r.rolsuper OR r.rolcreaterole) AND pg_has_role(a.usesysid, r.oid, 'MEMBER')))

-- :name twins
-- Hosts from which our own login works for another process of this broker that cannot be one before us: it connected after $3, when we had
-- begun. $1 LIKE pattern of the broker's sessions, $2 name of this boot's.
SELECT DISTINCT coalesce(host(client_addr), 'the server itself') AS host FROM pg_stat_activity
WHERE application_name LIKE $1 AND application_name <> $2 AND usename = current_user AND backend_start > $3::timestamptz
ORDER BY host LIMIT 8

-- :name terminate_late
-- $1 pid, $2 OID of its login
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND usesysid = $2

-- :name prepared_transactions
-- $1 names. A gid is any bytes: whoever prepares it in a database of another encoding gives it one that is no text here.
SELECT decode(replace(gid, '\', '\\'), 'escape') AS gid, database::text AS database, owner::text AS owner
FROM pg_prepared_xacts WHERE owner = ANY ($1::name[])

-- :name holders_of_roles
-- Prepared transactions that changed one of these roles ($1 OIDs) and so keep it locked, whoever they belong to by now. Only a
-- superuser may read pg_authid.
SELECT a.oid, decode(replace(p.gid, '\', '\\'), 'escape') AS gid, p.database::text AS database
FROM pg_authid a JOIN pg_prepared_xacts p ON p.transaction = a.xmax
WHERE a.oid = ANY ($1::oid[])

-- :name obstacles
-- Transactions, prepared or open, that hold locks on a role ($1, OID), or on relations that it owns in this database. A change of its row
-- shows as a lock on all roles, which others take all the time: of open ones only the user's own count then.
SELECT DISTINCT decode(replace(p.gid, '\', '\\'), 'escape') AS gid, a.pid,
       coalesce(p.database, a.datname)::text AS database, coalesce(p.owner, a.usename)::text AS owner
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid'
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE l.granted AND (p.gid IS NOT NULL OR (a.pid <> pg_backend_pid() AND a.usename IS NOT NULL)) AND (
  (l.locktype = 'object' AND l.database = 0 AND l.classid = 'pg_authid'::regclass AND l.objid = $1::oid)
  OR (l.locktype = 'relation' AND l.relation = 'pg_authid'::regclass AND l.mode = 'RowExclusiveLock'
    AND (p.gid IS NOT NULL OR a.usesysid = $1::oid))
  OR (l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.relation IN (SELECT c.oid FROM pg_class c WHERE c.relowner = $1::oid)))
LIMIT 5

-- :name waited_for
-- Sessions of $1 (OID), after those sessions and prepared transactions that keep them waiting.
WITH own AS MATERIALIZED (
  SELECT pid FROM pg_stat_activity WHERE usesysid = $1::oid
), others AS MATERIALIZED (
  SELECT DISTINCT unnest(pg_blocking_pids(pid)) AS pid FROM own
)
SELECT NULL::bytea AS gid, a.pid, a.datname::text AS database, a.usename::text AS owner, own.pid IS NOT NULL AS own
FROM pg_stat_activity a LEFT JOIN own ON own.pid = a.pid
WHERE a.pid IN (SELECT pid FROM own UNION SELECT pid FROM others)
UNION ALL
SELECT decode(replace(p.gid, '\', '\\'), 'escape'), NULL, p.database::text, p.owner::text, false
FROM pg_prepared_xacts p
JOIN pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL
JOIN pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL AND l.locktype = 'relation'
JOIN pg_locks w ON w.relation = l.relation AND w.database = l.database AND w.locktype = 'relation' AND NOT w.granted
WHERE w.pid IN (SELECT pid FROM own) AND 0 IN (SELECT pid FROM others)
ORDER BY own, pid
LIMIT 5

-- :name memberships
-- What roles ($1 OIDs, with the names of their heirs in $2) are members of, and as whom our login may take each away: empty for itself, null
-- where it may not. Not those by which one could become its heir, or make roles; nor roles that it made.
SELECT m.member AS oid,
       format('REVOKE %I FROM %I%s CASCADE', g.rolname, u.rolname,
              CASE WHEN current_setting('server_version_num')::int >= 160000 THEN format(' GRANTED BY %I', by.rolname) END) AS statement,
       CASE WHEN current_setting('server_version_num')::int < 160000 OR own.rolsuper OR m.grantor = own.oid THEN ''
         WHEN pg_has_role(m.grantor, 'SET') THEN by.rolname::text END AS actor
FROM unnest($1::oid[], $2::text[]) AS asked (oid, heir)
CROSS JOIN pg_roles own
JOIN pg_auth_members m ON m.member = asked.oid
JOIN pg_roles u ON u.oid = m.member JOIN pg_roles g ON g.oid = m.roleid LEFT JOIN pg_roles by ON by.oid = m.grantor
LEFT JOIN pg_roles h ON h.rolname = asked.heir
WHERE own.rolname = session_user
  AND (h.oid IS NULL OR NOT pg_has_role(m.roleid, h.oid, 'MEMBER'))
  AND NOT (u.rolcreaterole AND m.admin_option AND m.grantor = 10)
  AND NOT EXISTS (SELECT FROM pg_roles a WHERE (a.rolcreaterole OR a.rolsuper) AND pg_has_role(m.roleid, a.oid, 'MEMBER'))
ORDER BY m.member, g.rolname

-- :name own_rights
-- Statements that take away what was granted to roles ($1 OIDs) themselves, in this database or on what all share, on what others own. A
-- REVOKE on a table takes what is granted on its columns too. $2 rows.
SELECT DISTINCT d.refobjid AS oid,
       format('REVOKE ALL ON %s %s FROM %I CASCADE', CASE i.type WHEN 'sequence' THEN 'SEQUENCE' ELSE k.kind END,
              CASE d.classid WHEN 'pg_largeobject'::regclass THEN d.objid::text ELSE i.identity END,
              pg_get_userbyid(d.refobjid)) AS statement
FROM pg_shdepend d
JOIN (VALUES ('pg_class', 'TABLE'), ('pg_proc', 'ROUTINE'), ('pg_namespace', 'SCHEMA'), ('pg_database', 'DATABASE'),
             ('pg_largeobject', 'LARGE OBJECT'), ('pg_type', 'TYPE'), ('pg_language', 'LANGUAGE'),
             ('pg_foreign_data_wrapper', 'FOREIGN DATA WRAPPER'), ('pg_foreign_server', 'FOREIGN SERVER')) AS k (name, kind)
  ON d.classid = k.name::regclass
CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) i
WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = ANY ($1::oid[]) AND d.deptype = 'a' AND i.type IS NOT NULL
  AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
LIMIT $2

-- :name dependencies
-- What is owned by or granted to roles, in every database: how much of it, and some of it by name where it is shared or in this
-- database. Default privileges and user mappings are owned, yet no loss: how future objects would be shared, and a login. A database
-- without an encoding gives names as any bytes, of which those that are no ASCII are written as octal numbers. $1 OIDs.
SELECT d.refobjid AS oid, coalesce(db.datname::text, '') AS database, d.owned, d.code, d.count, coalesce(named.objects, '{}') AS objects
FROM (
  SELECT refobjid, dbid, count(*) AS count, bool_or(deptype = 'o' AND classid = 'pg_proc'::regclass) AS code,
         deptype = 'o' AND classid NOT IN ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass) AS owned
  FROM pg_shdepend
  WHERE refclassid = 'pg_authid'::regclass AND refobjid = ANY ($1::oid[])
  GROUP BY refobjid, dbid, owned
) d
LEFT JOIN pg_database db ON db.oid = d.dbid
LEFT JOIN LATERAL (
  SELECT array_agg(CASE WHEN getdatabaseencoding() = 'SQL_ASCII' THEN encode(decode(replace(few.object, '\', '\\'), 'escape'), 'escape')
                     ELSE few.object END) AS objects
  FROM (
    SELECT pg_describe_object(classid, objid, objsubid) AS object
    FROM pg_shdepend
    WHERE refclassid = 'pg_authid'::regclass AND refobjid = d.refobjid AND dbid = d.dbid
      AND d.owned = (deptype = 'o' AND classid NOT IN ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass))
    LIMIT 6
  ) few
) named ON d.dbid = 0 OR db.datname = current_database()

-- :name door
-- What keeps our own login out of a database. $1 name.
SELECT datallowconn AS open, datconnlimit AS at_most, has_database_privilege(oid, 'CONNECT') AS connect
FROM pg_database WHERE datname = $1

-- :name passed_on
-- Statements that take back rights on columns, in this database, of which users ($1 OIDs) are the grantors: table by table, as the user and
-- as who owns the table.
SELECT g.oid,
       format('SET LOCAL ROLE %I; REVOKE %s ON TABLE %s FROM %s CASCADE', g.name, g.rights, g.relation, g.grantees) AS as_user,
       format('GRANT %1$s ON TABLE %2$s TO %3$I WITH GRANT OPTION; REVOKE %1$s ON TABLE %2$s FROM %3$I CASCADE', g.rights, g.relation, g.name)
         AS as_owner
FROM (
  SELECT d.refobjid AS oid, pg_get_userbyid(d.refobjid) AS name, a.attrelid::regclass AS relation,
         string_agg(DISTINCT format('%s (%I)', e.privilege_type, a.attname), ', ') AS rights,
         string_agg(DISTINCT CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(e.grantee)) END, ', ') AS grantees
  FROM pg_shdepend d
  JOIN pg_attribute a ON a.attrelid = d.objid AND a.attnum = d.objsubid
  CROSS JOIN LATERAL aclexplode(a.attacl) e
  WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = ANY ($1::oid[]) AND d.deptype = 'a'
    AND d.classid = 'pg_class'::regclass AND d.objsubid <> 0 AND e.grantor = d.refobjid
    AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  GROUP BY d.refobjid, a.attrelid
) g

-- :name granted_memberships
-- Statements that take back memberships that users ($1 OIDs) granted, with all that came of them. 16 and later.
SELECT m.grantor AS oid, format('REVOKE %I FROM %I GRANTED BY %I CASCADE', pg_get_userbyid(m.roleid), pg_get_userbyid(m.member),
                                pg_get_userbyid(m.grantor)) AS statement
FROM pg_auth_members m
WHERE m.grantor = ANY ($1::oid[])

-- :name granted_memberships_before_16
-- The same where the server keeps no chains, and a grantor is a note of who granted last. Taken back is what users granted, and what is there
-- by such a grant alone: `held` are memberships with a way, by ADMIN OPTION, from somebody who needs none (a superuser, CREATEROLE), and
-- `held_by` those that have one if the user counts too. Who is a member of a user acts as that. The user's own come last: while they are
-- there the others can be told again.
WITH RECURSIVE able AS MATERIALIZED (
  SELECT oid FROM pg_roles WHERE rolsuper OR rolcreaterole
), acting (oid, role) AS (
  SELECT o, o FROM unnest($1::oid[]) AS o
  UNION
  SELECT acting.oid, m.member FROM acting JOIN pg_auth_members m ON m.roleid = acting.role WHERE m.member NOT IN (SELECT oid FROM able)
), granted AS MATERIALIZED (
  SELECT DISTINCT acting.oid, m.roleid FROM acting JOIN pg_auth_members m ON m.grantor = acting.role WHERE m.roleid <> acting.oid
), held (oid, roleid, member, admin) AS (
  SELECT granted.oid, m.roleid, m.member, m.admin_option
  FROM granted JOIN pg_auth_members m ON m.roleid = granted.roleid
  WHERE m.grantor <> granted.oid AND (m.grantor IN (SELECT oid FROM able) OR m.grantor NOT IN (SELECT oid FROM pg_roles))
  UNION
  SELECT held.oid, m.roleid, m.member, m.admin_option
  FROM held JOIN pg_auth_members m ON m.roleid = held.roleid
  WHERE held.admin AND held.member <> held.oid AND m.grantor <> held.oid AND (m.grantor = held.member
    OR (NOT EXISTS (SELECT FROM acting a WHERE a.oid = held.oid AND a.role = m.grantor) AND pg_has_role(m.grantor, held.member, 'MEMBER')))
), held_by (oid, roleid, member, admin) AS (
  SELECT granted.oid, m.roleid, m.member, m.admin_option
  FROM granted JOIN pg_auth_members m ON m.roleid = granted.roleid
  WHERE EXISTS (SELECT FROM acting a WHERE a.oid = granted.oid AND a.role = m.grantor)
  UNION
  SELECT held_by.oid, m.roleid, m.member, m.admin_option
  FROM held_by JOIN pg_auth_members m ON m.roleid = held_by.roleid
  WHERE held_by.admin AND m.grantor NOT IN (SELECT oid FROM able) AND pg_has_role(m.grantor, held_by.member, 'MEMBER')
)
SELECT lost.oid, format('REVOKE %I FROM %I', pg_get_userbyid(lost.roleid), pg_get_userbyid(lost.member)) AS statement
FROM (SELECT oid, roleid, member FROM held_by EXCEPT SELECT oid, roleid, member FROM held) lost
JOIN pg_auth_members m ON m.roleid = lost.roleid AND m.member = lost.member
WHERE lost.member <> lost.oid
ORDER BY m.grantor = lost.oid

-- :name long_lists
-- What has a list of rights of $1 bytes or more as it is stored, in this database, longest first, and how many. $2 rows.
SELECT what, bytes, count(*) OVER () AS found
FROM (
  SELECT CASE WHEN relkind = 'S' THEN 'sequence ' WHEN relkind IN ('v', 'm') THEN 'view ' ELSE 'table ' END
           || oid::regclass::text AS what, pg_column_size(relacl) AS bytes
  FROM pg_class WHERE relacl IS NOT NULL
  UNION ALL
  SELECT 'column ' || attrelid::regclass::text || '.' || quote_ident(attname), pg_column_size(attacl)
  FROM pg_attribute WHERE attacl IS NOT NULL AND NOT attisdropped
) lists
WHERE bytes >= $1
ORDER BY bytes DESC, what
LIMIT $2

-- :name granted_databases
-- Other databases that can be entered, in which users with the broker's marker were granted something. $1 LIKE pattern of the markers.
SELECT DISTINCT db.datname::text AS name
FROM pg_shdescription m
JOIN pg_shdepend d ON d.refclassid = 'pg_authid'::regclass AND d.refobjid = m.objoid AND d.deptype = 'a'
JOIN pg_database db ON db.oid = d.dbid
WHERE m.classoid = 'pg_authid'::regclass AND m.description LIKE $1 AND db.datallowconn AND db.datname <> current_database()
ORDER BY name

-- :name heir
-- Whether $1 (OID) could become $2 (name) by SET ROLE, and what $2 may do beyond owning data and entering databases and schemas;
-- no row where there is no such role. Rights on what other leases' users own don't count: any of them could impose these. Nor does
-- owning what leases leave: schemas, tables, sequences (those of columns go with the table) and large objects whose comment ends so, and
-- types and the like, by which nobody gets at anything. Only this database tells views from tables, and what a comment says; what is in
-- another one is out of reach from here.
SELECT pg_has_role($1::oid, r.oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
         AS within_reach,
       ARRAY(
         SELECT a.name
         FROM (VALUES ('SUPERUSER', r.rolsuper), ('CREATEROLE', r.rolcreaterole), ('CREATEDB', r.rolcreatedb),
                      ('REPLICATION', r.rolreplication), ('BYPASSRLS', r.rolbypassrls)) AS a (name, given)
         WHERE a.given
         UNION ALL
         SELECT format('membership in %I', g.rolname)
         FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
         WHERE m.member = r.oid
         UNION ALL
         SELECT 'rights on ' || coalesce(
                  CASE WHEN d.dbid IN (0, here.oid) THEN pg_describe_object(d.classid, d.objid, d.objsubid) END,
                  format('objects in database %I', db.datname))
         FROM pg_shdepend d
         CROSS JOIN (SELECT oid FROM pg_database WHERE datname = current_database()) here
         LEFT JOIN pg_database db ON db.oid = d.dbid
         WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'a'
           AND d.classid NOT IN ('pg_namespace'::regclass, 'pg_database'::regclass, 'pg_auth_members'::regclass)
           AND NOT EXISTS (
             SELECT FROM pg_shdepend o
             JOIN pg_shdescription m ON m.objoid = o.refobjid AND m.classoid = 'pg_authid'::regclass AND m.description LIKE 'broker:v1:%'
             WHERE o.dbid = d.dbid AND o.classid = d.classid AND o.objid = d.objid AND o.deptype = 'o'
               AND o.refclassid = 'pg_authid'::regclass)
         UNION ALL
         SELECT 'ownership of ' || coalesce(
                  CASE WHEN d.dbid IN (0, here.oid) THEN pg_describe_object(d.classid, d.objid, d.objsubid) END,
                  format('objects in database %I', db.datname))
         FROM pg_shdepend d
         CROSS JOIN (SELECT oid FROM pg_database WHERE datname = current_database()) here
         LEFT JOIN pg_database db ON db.oid = d.dbid
         WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'o'
           AND CASE
             WHEN d.classid NOT IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_namespace'::regclass, 'pg_largeobject'::regclass,
               'pg_collation'::regclass, 'pg_statistic_ext'::regclass, 'pg_ts_config'::regclass, 'pg_ts_dict'::regclass,
               'pg_default_acl'::regclass) THEN true
             WHEN d.dbid <> here.oid THEN false
             WHEN d.classid = 'pg_class'::regclass
               AND EXISTS (SELECT FROM pg_class c WHERE c.oid = d.objid AND c.relkind NOT IN ('r', 'p', 'S')) THEN true
             WHEN d.classid = 'pg_class'::regclass AND EXISTS (
               SELECT FROM pg_depend s
               WHERE s.classid = d.classid AND s.objid = d.objid AND s.refclassid = d.classid AND s.refobjsubid <> 0
                 AND s.deptype IN ('a', 'i')) THEN false
             WHEN d.classid = 'pg_type'::regclass THEN
               EXISTS (SELECT FROM pg_type t WHERE t.oid = d.objid AND t.typtype NOT IN ('e', 'c', 'm'))
             WHEN d.classid IN ('pg_class'::regclass, 'pg_namespace'::regclass, 'pg_largeobject'::regclass) THEN NOT EXISTS (
               SELECT FROM pg_description said
               WHERE said.classoid = d.classid AND said.objoid = d.objid AND said.objsubid = 0
                 AND said.description LIKE '%left by a user of the broker')
             ELSE false END
         LIMIT 5
       ) AS rights
FROM pg_roles r WHERE r.rolname = $2

-- :name closed_schemas
-- Schemas of this database in which $2 (name) may not create, and roles ($1 names) may or own something, with the statement that changes
-- that. A role's own schemas go to the heir with the rest.
WITH roles AS (
  SELECT oid FROM pg_roles WHERE rolname = ANY ($1::name[])
), owned AS MATERIALIZED (
  SELECT classid, objid
  FROM pg_shdepend
  WHERE refclassid = 'pg_authid'::regclass AND refobjid IN (SELECT oid FROM roles) AND deptype = 'o'
    AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
), holding AS MATERIALIZED (
  SELECT DISTINCT s.refobjid AS oid
  FROM owned CROSS JOIN LATERAL (
    SELECT refobjid
    FROM pg_depend
    WHERE classid = owned.classid AND objid = owned.objid AND objsubid = 0 AND refclassid = 'pg_namespace'::regclass
    OFFSET 0
  ) s
)
SELECT schema, creates, holds, format('GRANT CREATE ON SCHEMA %I TO %I', schema, heir) AS statement
FROM (
  SELECT n.nspname::text AS schema, h.rolname AS heir, n.oid IN (SELECT oid FROM holding) AS holds,
         EXISTS (SELECT FROM roles WHERE roles.oid <> n.nspowner AND has_schema_privilege(roles.oid, n.oid, 'CREATE')) AS creates
  FROM pg_namespace n, pg_roles h
  WHERE h.rolname = $2::name AND n.nspname !~ '^pg_' AND NOT has_schema_privilege(h.oid, n.oid, 'CREATE')
) closed
WHERE creates OR holds
ORDER BY schema

-- :name owned_code
-- What of $1 (OID) in this database would run, or be evaluated, with the rights of whoever owned it next, and the statement that
-- takes it away where there is one. All that is not known to be mere data counts: of what is owned, relations other than tables and
-- sequences, functions, operators and the like, domains, ranges, and casts of types; of owned tables, rules, triggers and policies,
-- foreign keys with actions (those run as the table's owner, and with them defaults and checks), those that may cast between types
-- (the look-up runs as the owner of the table that is referred to, for whoever inserts) and those of others, and expressions over
-- others' functions or types (the server itself evaluates indexes' ones as the owner when it analyses), and being a partition or child of
-- another owner's table or having one (an index on the one is built on the other as its owner). Taking a partition off has the server
-- look through foreign keys to the whole table, with their casts and policies and with the rights of whoever takes it off: never our code.
-- So those go first, and `ours` says whether that is for us to do: not where both tables are others'. It has the server read the key of the
-- table above, too, and compute what is constant in it: where anything there is not the server's own, nobody takes the partition off. A key
-- never changes, but its table's name may be another's by the time that the statement runs. So it looks at that behind its locks, of which the
-- one on the schema's row, against a new name for that, comes of a REVOKE of what nobody can have. OFFSET keeps the look-ups by object:
-- whatever else is planned for catalogues that nobody analysed takes minutes where there are thousands. $2 rows.
WITH mine AS MATERIALIZED (
  SELECT d.classid, d.objid
  FROM pg_shdepend d
  WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = $1::oid AND d.deptype = 'o'
    AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
), relations AS MATERIALIZED (
  SELECT c.oid, c.relkind
  FROM mine CROSS JOIN LATERAL (SELECT oid, relkind FROM pg_class WHERE oid = mine.objid OFFSET 0) c
  WHERE mine.classid = 'pg_class'::regclass
), tables AS MATERIALIZED (
  SELECT oid FROM relations WHERE relkind IN ('r', 'p')
), types AS MATERIALIZED (
  SELECT t.oid, t.typtype
  FROM mine CROSS JOIN LATERAL (SELECT oid, typtype FROM pg_type WHERE oid = mine.objid OFFSET 0) t
  WHERE mine.classid = 'pg_type'::regclass
), evaluated AS MATERIALIZED (
  SELECT 'pg_attrdef'::regclass AS classid, a.oid
  FROM tables CROSS JOIN LATERAL (SELECT oid FROM pg_attrdef WHERE adrelid = tables.oid OFFSET 0) a
  UNION ALL
  SELECT 'pg_constraint'::regclass, k.oid
  FROM tables CROSS JOIN LATERAL (SELECT oid FROM pg_constraint WHERE conrelid = tables.oid AND contype <> 'f' OFFSET 0) k
  UNION ALL
  SELECT 'pg_class'::regclass, i.indexrelid
  FROM tables CROSS JOIN LATERAL (SELECT indexrelid FROM pg_index WHERE indrelid = tables.oid OFFSET 0) i
  UNION ALL
  SELECT 'pg_statistic_ext'::regclass, x.oid
  FROM tables CROSS JOIN LATERAL (SELECT oid FROM pg_statistic_ext WHERE stxrelid = tables.oid OFFSET 0) x
  UNION ALL
  SELECT 'pg_class'::regclass, tables.oid FROM tables
), depending AS MATERIALIZED (
  SELECT DISTINCT evaluated.classid, evaluated.oid, e.refclassid, e.refobjid
  FROM evaluated CROSS JOIN LATERAL (
    SELECT refclassid, refobjid
    FROM pg_depend
    WHERE classid = evaluated.classid AND objid = evaluated.oid AND objsubid = 0 AND refobjid >= 16384
      AND refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_cast'::regclass, 'pg_opclass'::regclass, 'pg_type'::regclass)
    OFFSET 0
  ) e
), found AS (
  SELECT classid, objid, 0 AS objsubid
  FROM mine
  WHERE classid NOT IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_namespace'::regclass, 'pg_largeobject'::regclass,
    'pg_collation'::regclass, 'pg_statistic_ext'::regclass, 'pg_ts_config'::regclass, 'pg_ts_dict'::regclass,
    'pg_default_acl'::regclass, 'pg_user_mapping'::regclass)
  UNION ALL
  SELECT 'pg_class'::regclass, oid, 0 FROM relations WHERE relkind NOT IN ('r', 'p', 'S')
  UNION ALL
  SELECT 'pg_type'::regclass, oid, 0 FROM types WHERE typtype NOT IN ('e', 'c', 'm')
  UNION ALL
  SELECT DISTINCT 'pg_cast'::regclass, k.oid, 0
  FROM pg_cast k JOIN types t ON t.oid IN (k.castsource, k.casttarget) AND t.typtype NOT IN ('r', 'm')
  UNION ALL
  SELECT 'pg_rewrite'::regclass, w.oid, 0
  FROM tables CROSS JOIN LATERAL (SELECT oid FROM pg_rewrite WHERE ev_class = tables.oid OFFSET 0) w
  UNION ALL
  SELECT 'pg_trigger'::regclass, g.oid, 0
  FROM tables CROSS JOIN LATERAL (
    SELECT oid FROM pg_trigger WHERE tgrelid = tables.oid AND NOT tgisinternal AND tgparentid = 0 OFFSET 0) g
  UNION ALL
  SELECT 'pg_policy'::regclass, p.oid, 0
  FROM tables CROSS JOIN LATERAL (SELECT oid FROM pg_policy WHERE polrelid = tables.oid OFFSET 0) p
  UNION ALL
  SELECT 'pg_constraint'::regclass, k.oid, 0
  FROM tables CROSS JOIN LATERAL (
    SELECT oid FROM pg_constraint
    WHERE conrelid = tables.oid AND contype = 'f' AND conparentid = 0
      AND (confupdtype IN ('c', 'n', 'd') OR confdeltype IN ('c', 'n', 'd') OR EXISTS (
        SELECT FROM unnest(conkey, confkey) u (own, other)
        JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = u.own
        JOIN pg_attribute b ON b.attrelid = confrelid AND b.attnum = u.other
        WHERE a.atttypid <> b.atttypid AND greatest(a.atttypid, b.atttypid) >= 16384))
    OFFSET 0
  ) k
  UNION ALL
  SELECT 'pg_constraint'::regclass, k.oid, 0
  FROM pg_constraint k JOIN tables ON tables.oid = k.confrelid
  WHERE k.contype = 'f' AND k.conparentid = 0 AND NOT EXISTS (SELECT FROM tables own WHERE own.oid = k.conrelid)
  UNION ALL
  SELECT DISTINCT e.classid, e.oid, 0
  FROM depending e
  WHERE NOT (e.refclassid = 'pg_type'::regclass
      AND NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = e.refobjid AND t.typtype IN ('d', 'r', 'm')))
    AND NOT EXISTS (
      SELECT FROM pg_depend x JOIN pg_extension n ON n.oid = x.refobjid JOIN pg_roles r ON r.oid = n.extowner
      WHERE x.classid = e.refclassid AND x.objid = e.refobjid AND x.deptype = 'e' AND r.rolsuper)
  UNION ALL
  SELECT 'pg_class'::regclass, tables.oid, a.attnum
  FROM tables
  CROSS JOIN LATERAL (
    SELECT attnum, atttypid FROM pg_attribute
    WHERE attrelid = tables.oid AND attnum > 0 AND NOT attisdropped AND atttypid >= 16384
    OFFSET 0
  ) a
  CROSS JOIN LATERAL (SELECT typtype, typelem, typbasetype FROM pg_type WHERE oid = a.atttypid OFFSET 0) t
  LEFT JOIN LATERAL (SELECT oid, typtype FROM pg_type WHERE oid IN (t.typelem, t.typbasetype) OFFSET 0) b ON true
  WHERE t.typtype IN ('r', 'm') OR (b.typtype IN ('r', 'm') AND b.oid >= 16384)
), linked AS (
  SELECT h.inhrelid AS child, h.inhparent AS parent, h.inhparent AS other
  FROM tables CROSS JOIN LATERAL (SELECT inhrelid, inhparent FROM pg_inherits WHERE inhrelid = tables.oid OFFSET 0) h
  UNION ALL
  SELECT h.inhrelid, h.inhparent, h.inhrelid
  FROM tables CROSS JOIN LATERAL (SELECT inhrelid, inhparent FROM pg_inherits WHERE inhparent = tables.oid OFFSET 0) h
), parted AS MATERIALIZED (
  SELECT l.child, l.parent, p.relnamespace::regnamespace AS schema, c.relispartition AS partition, EXISTS (
           SELECT FROM pg_partitioned_table k
           JOIN pg_depend e ON e.classid = 'pg_class'::regclass AND e.objid = k.partrelid AND e.objsubid = 0
           WHERE k.partrelid = l.parent AND k.partexprs IS NOT NULL AND e.refobjid >= 16384
             AND e.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_cast'::regclass, 'pg_opclass'::regclass,
               'pg_type'::regclass)) AS keyed
  FROM linked l JOIN pg_class o ON o.oid = l.other JOIN pg_class c ON c.oid = l.child JOIN pg_class p ON p.oid = l.parent
  WHERE o.relowner <> $1::oid
), crossing AS MATERIALIZED (
  SELECT DISTINCT k.oid
  FROM (
    SELECT DISTINCT child FROM parted
    WHERE partition AND child IN (SELECT confrelid FROM pg_constraint WHERE contype = 'f' AND conparentid <> 0)
  ) referred
  CROSS JOIN LATERAL pg_partition_ancestors(referred.child) a
  JOIN pg_constraint k ON k.confrelid = a.relid AND k.contype = 'f' AND k.conparentid = 0
  WHERE a.relid <> referred.child
), taken AS (
  SELECT classid, objid, objsubid, false AS first FROM found
  WHERE NOT (classid = 'pg_constraint'::regclass AND objid IN (SELECT oid FROM crossing))
  UNION ALL
  SELECT 'pg_constraint'::regclass, oid, 0, true FROM crossing
)
SELECT format('%s below %s', pg_describe_object('pg_class'::regclass, child, 0), pg_describe_object('pg_class'::regclass, parent, 0))
         || CASE WHEN keyed THEN ' (whose key is code, so it is not taken off)' ELSE '' END AS object,
       CASE WHEN keyed THEN NULL WHEN partition THEN format('DO %L', format(
           'BEGIN LOCK TABLE ONLY %1$s, ONLY %2$s IN ACCESS EXCLUSIVE MODE; '
           'REVOKE GRANT OPTION FOR USAGE ON SCHEMA %3$s FROM PUBLIC; '
           'IF %4$L::pg_catalog.regclass OPERATOR(pg_catalog.<>) ''%5$s''::pg_catalog.oid THEN RAISE ''another table has that name''; END IF; '
           'IF EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE '
           'confrelid OPERATOR(pg_catalog.=) %6$L::pg_catalog.regclass AND conparentid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid) '
           'THEN RAISE ''foreign keys refer to the partition''; END IF; ALTER TABLE %1$s DETACH PARTITION %2$s; END',
           parent::regclass, child::regclass, schema, parent::regclass::text, parent, child::regclass::text))
         ELSE format('ALTER TABLE %s NO INHERIT %s', child::regclass, parent::regclass) END AS statement,
       true AS ours, false AS first, child AS place
FROM parted
UNION ALL
SELECT pg_describe_object(f.classid, f.objid, f.objsubid),
       CASE
         WHEN f.objsubid <> 0 OR f.classid IN ('pg_database'::regclass, 'pg_tablespace'::regclass, 'pg_subscription'::regclass)
           OR i.type IN ('table', 'sequence') THEN NULL
         WHEN f.classid = 'pg_constraint'::regclass THEN (
           SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname) FROM pg_constraint k WHERE k.oid = f.objid)
         WHEN f.classid = 'pg_attrdef'::regclass THEN (
           SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP %s', d.adrelid::regclass, a.attname,
                         CASE a.attgenerated WHEN '' THEN 'DEFAULT' ELSE 'EXPRESSION' END)
           FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE d.oid = f.objid)
         WHEN f.classid = 'pg_class'::regclass AND i.type = 'index' AND k.name IS NOT NULL THEN format(
           'ALTER TABLE %s DROP CONSTRAINT %I', k.relation, k.name)
         ELSE format('DROP %s %s', CASE i.type WHEN 'statistics object' THEN 'STATISTICS' ELSE upper(i.type) END, i.identity)
       END,
       f.classid <> 'pg_constraint'::regclass OR EXISTS (
         SELECT FROM pg_constraint k JOIN tables ON tables.oid IN (k.conrelid, k.confrelid) WHERE k.oid = f.objid),
       f.first, f.objid
FROM taken f CROSS JOIN LATERAL pg_identify_object(f.classid, f.objid, f.objsubid) i
LEFT JOIN LATERAL (
  SELECT k.conrelid::regclass AS relation, k.conname AS name
  FROM pg_depend e JOIN pg_constraint k ON k.oid = e.refobjid
  WHERE e.classid = f.classid AND e.objid = f.objid AND e.objsubid = 0 AND e.refclassid = 'pg_constraint'::regclass AND e.deptype = 'i'
  OFFSET 0
) k ON true
WHERE i.type IS NOT NULL
ORDER BY first DESC, place DESC
LIMIT $2

-- :name ties
-- What of others' relations and domains calls code of $1 (OIDs) in this database, however indirectly, and the statement that takes it off
-- them: it runs in others' sessions, whoever owns the code next. A trigger is all that a right on a table lets anybody put there (`lent`);
-- the rest was made as the table's owner. $2 rows.
WITH RECURSIVE called (oid, classid, objid) AS (
  SELECT d.refobjid, d.classid, d.objid
  FROM pg_shdepend d
  WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = ANY ($1::oid[]) AND d.deptype = 'o'
    AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND CASE d.classid
      WHEN 'pg_class'::regclass THEN (SELECT relkind IN ('v', 'm', 'f') FROM pg_class WHERE oid = d.objid)
      WHEN 'pg_type'::regclass THEN (SELECT typtype IN ('d', 'r', 'm') FROM pg_type WHERE oid = d.objid)
      ELSE d.classid NOT IN ('pg_namespace'::regclass, 'pg_largeobject'::regclass) END
  UNION
  SELECT called.oid, users.classid, users.objid
  FROM called CROSS JOIN LATERAL (
    SELECT e.classid, e.objid FROM pg_depend e
    WHERE e.refclassid = called.classid AND e.refobjid = called.objid AND e.objsubid = 0
      AND called.classid NOT IN ('pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_attrdef'::regclass)
    UNION ALL
    SELECT 'pg_class'::regclass, w.ev_class FROM pg_rewrite w
    WHERE called.classid = 'pg_rewrite'::regclass AND w.oid = called.objid AND w.rulename = '_RETURN'
    UNION ALL
    SELECT e.refclassid, e.refobjid FROM pg_depend e
    WHERE called.classid = 'pg_class'::regclass AND e.classid = called.classid AND e.objid = called.objid AND e.objsubid = 0
      AND e.refclassid = 'pg_constraint'::regclass AND e.deptype = 'i'
    UNION ALL
    SELECT 'pg_type'::regclass, k.contypid FROM pg_constraint k
    WHERE called.classid = 'pg_constraint'::regclass AND k.oid = called.objid AND k.contypid <> 0
    OFFSET 0
  ) users
  WHERE NOT (users.classid = 'pg_class'::regclass
    AND EXISTS (SELECT FROM pg_class c WHERE c.oid = users.objid AND c.relkind IN ('r', 'p', 'S')))
), tied AS (
  SELECT called.*, c.relowner AS owner, false AS lent
  FROM called JOIN pg_class c ON called.classid = 'pg_class'::regclass AND c.oid = called.objid
  WHERE c.relkind IN ('i', 'I') AND NOT c.relispartition AND NOT EXISTS (
    SELECT FROM pg_depend e
    WHERE e.classid = called.classid AND e.objid = called.objid AND e.refclassid = 'pg_constraint'::regclass AND e.deptype = 'i')
  UNION ALL
  SELECT called.*, c.relowner, true
  FROM called JOIN pg_trigger t ON called.classid = 'pg_trigger'::regclass AND t.oid = called.objid JOIN pg_class c ON c.oid = t.tgrelid
  WHERE NOT t.tgisinternal AND t.tgparentid = 0
  UNION ALL
  SELECT called.*, c.relowner, false
  FROM called JOIN pg_rewrite w ON called.classid = 'pg_rewrite'::regclass AND w.oid = called.objid JOIN pg_class c ON c.oid = w.ev_class
  WHERE w.rulename <> '_RETURN'
  UNION ALL
  SELECT called.*, c.relowner, false
  FROM called JOIN pg_policy p ON called.classid = 'pg_policy'::regclass AND p.oid = called.objid JOIN pg_class c ON c.oid = p.polrelid
  UNION ALL
  SELECT called.*, c.relowner, false
  FROM called JOIN pg_attrdef a ON called.classid = 'pg_attrdef'::regclass AND a.oid = called.objid JOIN pg_class c ON c.oid = a.adrelid
  UNION ALL
  SELECT called.*, coalesce(c.relowner, t.typowner), false
  FROM called JOIN pg_constraint k ON called.classid = 'pg_constraint'::regclass AND k.oid = called.objid
  LEFT JOIN pg_class c ON c.oid = k.conrelid LEFT JOIN pg_type t ON t.oid = k.contypid
  WHERE k.conparentid = 0
  UNION ALL
  SELECT called.*, x.stxowner, false
  FROM called JOIN pg_statistic_ext x ON called.classid = 'pg_statistic_ext'::regclass AND x.oid = called.objid
  UNION ALL
  SELECT called.*, v.evtowner, false
  FROM called JOIN pg_event_trigger v ON called.classid = 'pg_event_trigger'::regclass AND v.oid = called.objid
)
SELECT DISTINCT tied.oid, tied.lent, CASE tied.classid
         WHEN 'pg_constraint'::regclass THEN (
           SELECT format('ALTER %s DROP CONSTRAINT IF EXISTS %I',
                         CASE k.contypid WHEN 0 THEN 'TABLE ' || k.conrelid::regclass ELSE 'DOMAIN ' || k.contypid::regtype END, k.conname)
           FROM pg_constraint k WHERE k.oid = tied.objid)
         WHEN 'pg_attrdef'::regclass THEN (
           SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP %s', d.adrelid::regclass, a.attname,
                         CASE a.attgenerated WHEN '' THEN 'DEFAULT' ELSE 'EXPRESSION IF EXISTS' END)
           FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE d.oid = tied.objid)
         ELSE format('DROP %s IF EXISTS %s', CASE i.type WHEN 'statistics object' THEN 'STATISTICS' ELSE upper(i.type) END, i.identity) END
         AS statement
FROM tied CROSS JOIN LATERAL pg_identify_object(tied.classid, tied.objid, 0) i
WHERE tied.owner <> tied.oid AND i.type IS NOT NULL
ORDER BY statement
LIMIT $2

-- :name lent
-- Statements that take from others what lets them tie something to tables of $1 (OID) that runs as the owner. $2 rows.
SELECT format('REVOKE %s ON TABLE %s FROM %s CASCADE', string_agg(DISTINCT lent.privilege_type, ', '), c.oid::regclass,
              string_agg(DISTINCT CASE lent.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(lent.grantee)) END, ', '))
         AS statement
FROM pg_class c
CROSS JOIN LATERAL (
  SELECT grantee, privilege_type FROM aclexplode(c.relacl)
  UNION ALL
  SELECT e.grantee, e.privilege_type
  FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) e
  WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped
) lent
WHERE c.relowner = $1::oid AND c.relkind IN ('r', 'p') AND lent.grantee <> $1::oid
  AND lent.privilege_type IN ('REFERENCES', 'TRIGGER', 'MAINTAIN')
GROUP BY c.oid
LIMIT $2

-- :name being_tied
-- Tables of $1 (OID) to which an open transaction ties a foreign key or a trigger.
SELECT DISTINCT c.oid::regclass::text AS object
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE l.locktype = 'relation' AND l.mode = 'ShareRowExclusiveLock' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND c.relowner = $1::oid
LIMIT 6

-- :name unsaid
-- Statements that have schemas, tables, sequences and large objects of $1 (OID) say where they come from, below what they say already.
-- $2 rows.
SELECT format('COMMENT ON %s IS %L', o.target, concat_ws(E'\n', said.description, 'left by a user of the broker')) AS statement
FROM pg_shdepend d
CROSS JOIN LATERAL (
  SELECT format('SCHEMA %I', n.nspname) AS target FROM pg_namespace n WHERE d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
  UNION ALL
  SELECT format('LARGE OBJECT %s', d.objid) WHERE d.classid = 'pg_largeobject'::regclass
  UNION ALL
  SELECT format('%s %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass)
  FROM pg_class c
  WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('r', 'p', 'S') AND NOT EXISTS (
    SELECT FROM pg_depend s
    WHERE s.classid = d.classid AND s.objid = d.objid AND s.refclassid = d.classid AND s.refobjsubid <> 0 AND s.deptype IN ('a', 'i'))
) o
LEFT JOIN LATERAL (
  SELECT description FROM pg_description WHERE classoid = d.classid AND objoid = d.objid AND objsubid = 0 OFFSET 0
) said ON true
WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = $1::oid AND d.deptype = 'o'
  AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND coalesce(said.description NOT LIKE '%left by a user of the broker', true)
LIMIT $2

-- :name owned_ids
-- A page of what $1 (OID) owns in this database of the kinds that come by the thousand, newest first, since what depends on another
-- object is newer as a rule. $2 the OID before which, $3 rows.
SELECT d.classid, d.objid
FROM pg_shdepend d
WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = $1::oid AND d.deptype = 'o' AND d.objid < $2::oid
  AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND d.classid = ANY ('{pg_class,pg_proc,pg_type,pg_namespace,pg_largeobject,pg_collation,pg_conversion,pg_operator,pg_opclass,
    pg_opfamily,pg_ts_config,pg_ts_dict,pg_statistic_ext,pg_publication}'::regclass[])
ORDER BY d.objid DESC
LIMIT $3

-- :name owned_names
-- What of these is still owned by $1 (OID), as statements name it; sequences of a table's columns go with the table. OFFSET keeps
-- the look-up by object: by owner it would read all that there is, for every slice. $2 classes, $3 OIDs.
SELECT i.type AS kind, i.identity AS name
FROM unnest($2::oid[], $3::oid[]) WITH ORDINALITY AS a (classid, objid, place)
CROSS JOIN LATERAL (
  SELECT d.refclassid, d.refobjid
  FROM pg_shdepend d
  WHERE d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND d.classid = a.classid AND d.objid = a.objid AND d.objsubid = 0 AND d.deptype = 'o'
  OFFSET 0
) owner
CROSS JOIN LATERAL pg_identify_object(a.classid, a.objid, 0) i
WHERE owner.refclassid = 'pg_authid'::regclass AND owner.refobjid = $1::oid AND i.identity IS NOT NULL AND NOT EXISTS (
  SELECT FROM pg_depend s
  WHERE s.classid = 'pg_class'::regclass AND s.objid = a.objid AND a.classid = s.classid
    AND s.refclassid = 'pg_class'::regclass AND s.refobjsubid <> 0 AND s.deptype IN ('a', 'i'))
ORDER BY a.place

-- :name foreign_keys
-- Statements that take the foreign keys off tables of $1 (OID), which may bind them to one another in a circle. $2 rows.
SELECT format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', k.conrelid::regclass, k.conname) AS statement
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE k.contype = 'f' AND k.conparentid = 0 AND c.relowner = $1::oid
LIMIT $2

-- :name policies
-- Statements that take $1 (OID) out of the policies on its own tables. $2 rows.
SELECT CASE WHEN p.polroles = ARRAY[$1::oid] THEN format('DROP POLICY IF EXISTS %I ON %s', p.polname, p.polrelid::regclass)
         ELSE format('ALTER POLICY %I ON %s TO %s', p.polname, p.polrelid::regclass, (
           SELECT string_agg(CASE o WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(o)) END, ', ')
           FROM unnest(p.polroles) o WHERE o <> $1::oid)) END AS statement
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
WHERE c.relowner = $1::oid AND $1::oid = ANY (p.polroles)
LIMIT $2

-- :name position
-- How far a server that takes writes has written its log, and since when it runs.
SELECT pg_current_wal_flush_lsn()::text AS lsn, pg_postmaster_start_time()::text AS started

-- :name standby
-- How a standby stands: what it has replayed ($1 position of the log to be reached), and who of $2 (OIDs) could still log in.
SELECT pg_is_in_recovery() AS standby, pg_postmaster_start_time()::text AS started,
       coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false) AS caught_up,
       coalesce(pg_wal_lsn_diff($1::text::pg_lsn, pg_last_wal_replay_lsn()), 0)::bigint AS behind,
       ARRAY(SELECT r.oid FROM pg_roles r WHERE r.oid = ANY ($2::oid[]) AND r.rolcanlogin) AS open

-- :name streaming
-- Who fetches the log that standbys replay; whoever fetches changes for a subscription enters a database. Only who may see all statistics
-- sees where from, and what tells standbys from others: these replay nothing.
SELECT concat_ws(' at ', r.application_name, host(r.client_addr)) AS who, r.state IS NULL AS hidden
FROM pg_stat_replication r JOIN pg_stat_activity a ON a.pid = r.pid
WHERE a.datid IS NULL AND (r.state IS NULL OR r.replay_lsn IS NOT NULL)
ORDER BY who

-- :name logins_in_progress
-- Processes in the transaction in which a session starts, which show no user yet: its lock on itself is all that there is of a login for
-- physical replication, which enters no database. An autovacuum worker shows its database; what replays a standby's log counts from 0.
SELECT l.pid, l.virtualtransaction AS attempt
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.pid IS NOT NULL AND l.granted AND l.virtualtransaction NOT LIKE '%/0'
  AND a.usesysid IS NULL AND a.datid IS NULL

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
          SELECT m.roleid::regrole AS role, m.grantor::regrole AS grantor FROM pg_auth_members m WHERE m.member = one.oid
        LOOP
          -- From 16 on only who granted it takes it back; before, the grantor is a mere note.
          IF current_setting('server_version_num')::int >= 160000 THEN
            EXECUTE format('SET LOCAL ROLE %s', membership.grantor);
          END IF;
          EXECUTE format('REVOKE %s FROM %I CASCADE', membership.role, one.rolname);
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

-- :name anybody_able
-- Whether any of $1 (OIDs) could make roles. Asked for every batch: groups that all of them have are looked at once, and everything by its
-- OID, since where nobody analysed the catalogues all roles that there are would be read.
WITH RECURSIVE above (role) AS (
  SELECT m.roleid FROM unnest($1::oid[]) AS o CROSS JOIN LATERAL (SELECT roleid FROM pg_auth_members WHERE member = o OFFSET 0) m
  UNION
  SELECT m.roleid FROM above CROSS JOIN LATERAL (SELECT roleid FROM pg_auth_members WHERE member = above.role OFFSET 0) m
)
SELECT EXISTS (
  SELECT FROM (SELECT unnest($1::oid[]) UNION ALL SELECT role FROM above) AS each (role)
  WHERE (SELECT r.rolcreaterole OR r.rolsuper FROM pg_roles r WHERE r.oid = each.role)
) AS able

-- :name able_to_make_roles
-- Which of $1 (OIDs) could make roles, as what, what they made as far as the server knows (from 16 on role 10, the cluster's first, grants a
-- role to whoever made it), and what takes these logins and that right away. OFFSET and scalar subqueries have
-- everything looked up by OID: joined, all roles and memberships that there are would be read.
WITH RECURSIVE above (oid, role, via, grantor) AS (
  SELECT o, o, 0::oid, 0::oid FROM unnest($1::oid[]) AS o
  UNION
  SELECT above.oid, m.roleid, CASE above.via WHEN 0 THEN m.roleid ELSE above.via END,
         CASE above.via WHEN 0 THEN m.grantor ELSE above.grantor END
  FROM above CROSS JOIN LATERAL (SELECT roleid, grantor FROM pg_auth_members WHERE member = above.role OFFSET 0) m
), able AS MATERIALIZED (
  SELECT oid, role, via, grantor FROM above
  WHERE (SELECT r.rolcreaterole OR r.rolsuper FROM pg_roles r WHERE r.oid = above.role)
), made (oid, role) AS (
  SELECT DISTINCT able.oid, m.roleid FROM able JOIN pg_auth_members m ON m.member = able.oid
  WHERE m.admin_option AND m.grantor = 10 AND able.role = able.oid AND current_setting('server_version_num')::int >= 160000
  UNION
  SELECT made.oid, m.roleid FROM made JOIN pg_auth_members m ON m.member = made.role WHERE m.admin_option AND m.grantor = 10
)
SELECT u.oid,
       ARRAY(SELECT DISTINCT quote_ident(pg_get_userbyid(able.role)) FROM able WHERE able.oid = u.oid ORDER BY 1) AS able,
       ARRAY(SELECT quote_ident(pg_get_userbyid(made.role)) FROM made WHERE made.oid = u.oid ORDER BY 1) AS made,
       ARRAY(
         SELECT format('ALTER ROLE %1$I NOLOGIN; SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity '
                       'WHERE usename OPERATOR(pg_catalog.=) %1$L::pg_catalog.name;', pg_get_userbyid(made.role))
         FROM made WHERE made.oid = u.oid
         UNION ALL
         SELECT DISTINCT CASE
           WHEN able.via = 0 THEN format('ALTER ROLE %I NOCREATEROLE%s;', pg_get_userbyid(u.oid),
                                         (SELECT CASE WHEN r.rolsuper THEN ' NOSUPERUSER' END FROM pg_roles r WHERE r.oid = u.oid))
           WHEN current_setting('server_version_num')::int >= 160000 THEN
             format('REVOKE %I FROM %I GRANTED BY %I CASCADE;', pg_get_userbyid(able.via), pg_get_userbyid(u.oid),
                    pg_get_userbyid(able.grantor))
           ELSE format('REVOKE %I FROM %I CASCADE;', pg_get_userbyid(able.via), pg_get_userbyid(u.oid)) END
         FROM able WHERE able.oid = u.oid
       ) AS remedy
FROM (SELECT DISTINCT oid FROM able) u

-- :name lasting
-- Roles that $1 (OID) could become by SET ROLE and that can log in, and those of the server's own by which it gets at the server's account.
SELECT quote_ident(r.rolname) AS name, r.rolcanlogin AS login
FROM pg_roles r
WHERE r.oid <> $1::oid AND (
  (r.rolcanlogin
    AND pg_has_role($1::oid, r.oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END))
  OR (r.rolname IN ('pg_execute_server_program', 'pg_write_server_files') AND pg_has_role($1::oid, r.oid, 'MEMBER')))
ORDER BY r.rolname
LIMIT 5

-- :name in_the_way
-- Statements for a superuser after which `end_as_each` can act as $1 (OID): what keeps our login from becoming that user, from setting its
-- memberships aside (from 16 on only who granted one takes it back, and our login may be unable to become that one, with whose own login
-- nothing is wrong), and the user from ending its own sessions. None where the reason was a passing one.
WITH RECURSIVE me AS (
  SELECT oid, rolname, rolsuper, current_setting('server_version_num')::int >= 160000 AS new FROM pg_roles WHERE rolname = session_user
), one AS (
  SELECT oid, rolname, rolsuper FROM pg_roles WHERE oid = $1::oid
), above (role) AS (
  SELECT roleid FROM pg_auth_members WHERE member = $1::oid
  UNION SELECT m.roleid FROM above JOIN pg_auth_members m ON m.member = above.role
)
SELECT format(CASE WHEN new THEN 'GRANT %I TO %I WITH INHERIT TRUE, SET TRUE' ELSE 'GRANT %I TO %I' END, one.rolname, me.rolname)
         AS statement
FROM one, me WHERE NOT pg_has_role(me.oid, one.oid, CASE WHEN new THEN 'SET' ELSE 'MEMBER' END)
UNION ALL
SELECT format('ALTER ROLE %I NOSUPERUSER', one.rolname) FROM one, me WHERE one.rolsuper AND NOT me.rolsuper
UNION ALL
SELECT DISTINCT format(CASE WHEN new THEN 'REVOKE %I FROM %I GRANTED BY %I CASCADE' ELSE 'REVOKE %I FROM %I CASCADE' END,
                       g.rolname, one.rolname, by.rolname)
FROM one, me, pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid LEFT JOIN pg_roles by ON by.oid = m.grantor
WHERE m.member = one.oid AND CASE WHEN new THEN NOT pg_has_role(me.oid, m.grantor, 'SET') ELSE g.rolsuper AND NOT me.rolsuper END
  AND EXISTS (SELECT FROM above JOIN pg_roles a ON a.oid = above.role WHERE a.rolcanlogin OR a.rolname = 'pg_signal_backend')
UNION ALL
SELECT format('/* in database %I */ GRANT EXECUTE ON FUNCTION pg_terminate_backend(int, bigint) TO PUBLIC', current_database())
FROM one WHERE NOT has_function_privilege(one.oid, 'pg_terminate_backend(int, bigint)', 'EXECUTE')

-- :name creators
-- The roots of creators that our login itself made (role 10, the cluster's first, grants a role to whoever made it), and what they
-- made, with numbers of users and with the groups that they hand out. $1 comment of a root. 16 and later.
WITH roots AS (
  SELECT r.oid, r.rolname
  FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid JOIN pg_roles me ON me.oid = m.member
  WHERE me.rolname = session_user AND m.admin_option AND m.grantor = 10
    AND r.rolcreaterole AND NOT r.rolcanlogin AND shobj_description(r.oid, 'pg_authid') = $1
)
SELECT roots.rolname::text AS root, c.rolname::text AS name, c.rolcreaterole AS creates,
       (SELECT count(*) FROM pg_auth_members u WHERE u.member = c.oid AND u.admin_option AND u.grantor = 10) AS live,
       ARRAY(SELECT g.rolname::text FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid
             WHERE a.member = c.oid AND a.admin_option AND a.grantor <> 10) AS groups
FROM roots
LEFT JOIN pg_auth_members m ON m.member = roots.oid AND m.admin_option AND m.grantor = 10
LEFT JOIN pg_roles c ON c.oid = m.roleid
ORDER BY roots.oid, c.oid

-- :name as_each
-- Runs texts, each as the role of the same place (see `acting`). What a call sets of `role` is undone when it ends.
CREATE FUNCTION pg_temp.broker_as_each(roles text[], texts text[], place int) RETURNS void
LANGUAGE plpgsql SET role = none AS $broker$
BEGIN
  PERFORM set_config('role', roles[place], true);
  IF place < cardinality(roles) THEN
    PERFORM pg_temp.broker_as_each(roles, texts, place + 1);
  END IF;
  EXECUTE texts[place];
END $broker$;
-- Whatever the login's default privileges say: the roles call it too, and nobody else finds it.
GRANT EXECUTE ON FUNCTION pg_temp.broker_as_each(text[], text[], int) TO PUBLIC

-- :name makers
-- Which role may change each of $1 (OIDs), our login first; an empty name stands for it. 16 and later.
SELECT u.oid, maker.name
FROM unnest($1::oid[]) AS u (oid) CROSS JOIN LATERAL (
  SELECT CASE WHEN c.rolname = session_user THEN '' ELSE c.rolname::text END AS name
  FROM pg_auth_members m JOIN pg_roles c ON c.oid = m.member
  WHERE m.roleid = u.oid AND m.admin_option AND (m.grantor = 10 OR c.rolname = session_user)
  ORDER BY c.rolname = session_user DESC, c.rolcanlogin, m.oid
  LIMIT 1
) maker

-- :name root_of
-- The root that made the creator $1 (name).
SELECT r.rolname::text AS root
FROM pg_auth_members m JOIN pg_roles c ON c.oid = m.roleid JOIN pg_roles r ON r.oid = m.member
WHERE c.rolname = $1 AND m.admin_option AND m.grantor = 10 AND r.rolcreaterole AND NOT r.rolcanlogin

-- :name made_superuser
-- Whether the role $1 (name) is a superuser, whom nobody but a superuser may change.
SELECT FROM pg_roles WHERE rolname = $1 AND rolsuper

-- :name grantable
-- Which of $1 (names) are roles, and whether our login may let others join them.
SELECT rolname::text AS name, pg_has_role(session_user, oid, 'MEMBER WITH ADMIN OPTION') AS admin
FROM pg_roles
WHERE rolname = ANY ($1::name[]) AND NOT rolsuper AND rolname <> session_user
ORDER BY rolname

-- :name preflight
-- What our login lacks, with the statement that gives it. $1 groups that users join, $2 roles that get what users own.
WITH me AS (
  SELECT oid, rolname, rolsuper, rolcreaterole, current_setting('server_version_num')::int >= 160000 AS new
  FROM pg_roles WHERE rolname = session_user
), g AS (
  SELECT n.name, r.oid, r.rolsuper FROM unnest($1::text[]) AS n (name) LEFT JOIN pg_roles r ON r.rolname = n.name::name
), o AS (
  SELECT n.name, r.oid FROM unnest($2::text[]) AS n (name) LEFT JOIN pg_roles r ON r.rolname = n.name::name
)
SELECT kind, need, fix FROM (
  SELECT 'login' AS kind, 'CREATEROLE' AS need, rolsuper OR rolcreaterole AS ok, format('ALTER ROLE %I CREATEROLE', rolname) AS fix
  FROM me
  UNION ALL
  SELECT 'terms', 'group exists: ' || name, oid IS NOT NULL, format('CREATE ROLE %I NOLOGIN', name) FROM g
  UNION ALL
  SELECT 'terms', 'grant group: ' || g.name, me.rolsuper OR NOT g.rolsuper AND CASE
           WHEN new THEN pg_has_role(me.oid, g.oid, 'MEMBER WITH ADMIN OPTION') ELSE rolcreaterole END,
         format(CASE WHEN g.rolsuper THEN '-- %I is a superuser: choose another group'
                     WHEN new THEN 'GRANT %I TO %I WITH ADMIN OPTION, INHERIT FALSE, SET FALSE'
                     ELSE 'ALTER ROLE %2$I CREATEROLE' END, g.name, rolname)
  FROM g, me WHERE g.oid IS NOT NULL
  UNION ALL
  SELECT 'terms', 'hand over to: ' || name,
         o.oid IS NOT NULL AND pg_has_role(me.oid, o.oid, 'USAGE')
           AND pg_has_role(me.oid, o.oid, CASE WHEN new THEN 'SET' ELSE 'MEMBER' END),
         format(CASE WHEN o.oid IS NULL THEN 'CREATE ROLE %1$I NOLOGIN; GRANT %1$I TO %2$I' ELSE 'GRANT %1$I TO %2$I' END, name, rolname)
  FROM o, me
  UNION ALL
  SELECT 'login', 'connect: ' || datname, has_database_privilege(me.oid, d.oid, 'CONNECT'),
         format('GRANT CONNECT ON DATABASE %I TO %I', datname, rolname)
  FROM pg_database d, me WHERE datallowconn
  UNION ALL
  SELECT 'terms', 'group connects: ' || name, has_database_privilege(oid, current_database(), 'CONNECT'),
         format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name)
  FROM g WHERE oid IS NOT NULL
  UNION ALL
  SELECT 'login', 'end sessions of dropped users', rolsuper OR pg_has_role(oid, 'pg_signal_backend', 'USAGE'),
         format('GRANT pg_signal_backend TO %I', rolname)
  FROM me
) q WHERE NOT ok

-- :name public_is_safe
-- The version of what says who may create in schema public, one row where none but superusers and our login may, and nobody else owns a
-- function or an operator there. pg_database_owner, who owns it from 15 on, is whoever owns the database.
WITH trusted AS (SELECT oid FROM pg_roles WHERE rolsuper OR rolname = session_user)
SELECT n.xmin::text || '/' || d.xmin::text AS version
FROM pg_namespace n, pg_database d
WHERE n.nspname = 'public' AND d.datname = current_database()
  AND NOT EXISTS (
    SELECT FROM (
      SELECT n.nspowner AS role
      UNION SELECT a.grantee FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a WHERE a.privilege_type = 'CREATE'
    ) may
    WHERE CASE WHEN may.role = coalesce(to_regrole('pg_database_owner')::oid, 0) AND may.role <> 0 THEN d.datdba ELSE may.role END
      NOT IN (SELECT oid FROM trusted)
  )
  AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid AND p.proowner NOT IN (SELECT oid FROM trusted))
  AND NOT EXISTS (SELECT FROM pg_operator o WHERE o.oprnamespace = n.oid AND o.oprowner NOT IN (SELECT oid FROM trusted))
