"""The PostgreSQL data layer of a payment orchestration engine.

The database enforces every invariant. Each one has a name (`INV-...`), a SQLSTATE and a typed
exception. A service calls `orchestration.repo` and catches `orchestration.errors`.
`orchestration.invariants` lists each promise with the database objects that keep it.
"""
