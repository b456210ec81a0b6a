-- The broker's login, made when compose.yaml first starts PostgreSQL. Run by psql as the superuser; the password comes from a file.
\set password `cat /run/secrets/broker-database-password`
CREATE ROLE broker LOGIN CREATEROLE PASSWORD :'password';
GRANT pg_signal_backend TO broker;
-- Keeps what it does out of statement statistics, and out of the log of a session that is ended: docs/secrets.md
GRANT SET ON PARAMETER pg_stat_statements.track_utility, log_error_verbosity TO broker;
-- The image puts the superuser's password into its server's environment at every start. From here on it opens nothing: that user gets in
-- through the server's socket in the container alone.
ALTER ROLE CURRENT_USER PASSWORD NULL;
