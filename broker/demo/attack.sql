-- What the attacks of the demo are after: a table that the shop's readers may not read. What users leave behind would go to its owner.
CREATE ROLE shop_owner NOLOGIN;
-- Somebody without any rights, for whom it is safe to inherit.
CREATE ROLE shop_attic NOLOGIN;

CREATE TABLE salaries (
    name text PRIMARY KEY,
    salary numeric(8, 2) NOT NULL
);

INSERT INTO salaries VALUES ('ada', 5200.00), ('bob', 4100.00);
ALTER TABLE salaries OWNER TO shop_owner;

-- A place where leased users may make things of their own.
CREATE SCHEMA drafts;
GRANT USAGE, CREATE ON SCHEMA drafts TO shop_readers, shop_owner, shop_attic;
GRANT shop_owner, shop_attic TO broker;
