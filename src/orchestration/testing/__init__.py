"""Tools for tests and demos: a PostgreSQL server that needs no installation (`embedded`)."""
