-- The shop of the demo: two tables, a group role that may read them, and the plain login that the broker works with.
CREATE TABLE products (
    id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    price numeric(8, 2) NOT NULL CHECK (price >= 0)
);

CREATE TABLE orders (
    id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    product integer NOT NULL REFERENCES products,
    quantity integer NOT NULL CHECK (quantity > 0)
);

INSERT INTO products (name, price) VALUES ('lamp', 34.00), ('desk', 249.00), ('chair', 119.00);
INSERT INTO orders (product, quantity) VALUES (1, 2), (3, 4), (2, 1), (3, 1);

-- Rights belong to a group; a leased user joins it. A table whose rights name each user fills up and slows down.
CREATE ROLE shop_readers NOLOGIN;
GRANT SELECT ON products, orders TO shop_readers;

-- The broker is no superuser: it may make users, hand out this one group, and end sessions.
GRANT shop_readers TO broker WITH ADMIN OPTION, INHERIT FALSE, SET FALSE;
GRANT pg_signal_backend TO broker;
