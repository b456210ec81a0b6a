-- What the attacks of the demo are after: a table that the shop's readers may not read. Its owner also gets what users leave behind.
CREATE ROLE shop_owner NOLOGIN;

CREATE TABLE salaries (
    name text PRIMARY KEY,
    salary numeric(8, 2) NOT NULL
);

INSERT INTO salaries VALUES ('ada', 5200.00), ('bob', 4100.00);
ALTER TABLE salaries OWNER TO shop_owner;

-- A place where leased users may make things of their own.
CREATE SCHEMA drafts;
GRANT USAGE, CREATE ON SCHEMA drafts TO shop_readers, shop_owner;
GRANT shop_owner TO broker;
