"""The PostgreSQL data layer of a payment orchestration engine.

Every invariant is enforced by the database, has a name (`INV-...`), a defined SQLSTATE and a
typed exception. Start with `orchestration.repo` (what a service calls), `orchestration.errors`
(what it catches) and `orchestration.invariants` (what is promised, and by which database object).
"""
