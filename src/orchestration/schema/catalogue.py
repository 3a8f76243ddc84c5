"""Reads the live catalogue: one canonical text per object, by a path such as
`triggers/policy_versions__guard`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from sqlalchemy import Connection, text

# Each query returns (path, text). The search_path is empty, so PostgreSQL qualifies every name.
# A NOT NULL is listed with its table's columns, because only PostgreSQL 18 also stores it as a
# constraint. A NOT NULL that is NOT VALID is listed as a constraint, because the columns do not
# show it.
QUERIES = (
    r"""
    SELECT 'schemas/' || n.nspname,
           format('CREATE SCHEMA %I AUTHORIZATION %s;', n.nspname, n.nspowner::regrole)
    FROM pg_namespace n
    WHERE n.nspname = 'orchestration'
    """,
    r"""
    SELECT 'functions/' || p.proname,
           concat_ws(E'\n',
             CASE WHEN p.prokind = 'a' THEN 'AGGREGATE ' || p.oid::regprocedure
               ELSE rtrim(pg_get_functiondef(p.oid), E'\n') END || ';',
             '-- owner: ' || p.proowner::regrole::text)
    FROM pg_proc p
    WHERE p.pronamespace = to_regnamespace('orchestration')
    """,
    r"""
    SELECT 'triggers/' || c.relname || '__' || t.tgname,
           concat_ws(E'\n',
             pg_get_triggerdef(t.oid) || ';',
             '-- enabled: ' || t.tgenabled::text)
    FROM pg_trigger t
    JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = to_regnamespace('orchestration')
      AND NOT t.tgisinternal
    """,
    r"""
    SELECT 'constraints/' || c.conname,
           concat_ws(E'\n',
             format('ALTER TABLE %s ADD CONSTRAINT %I %s;',
               c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid)),
             CASE WHEN NOT c.convalidated THEN '-- not validated' END,
             (SELECT '-- enabled: ' || string_agg(DISTINCT t.tgenabled::text, ', ')
              FROM pg_trigger t
              WHERE t.tgconstraint = c.oid AND t.tgisinternal AND t.tgenabled <> 'O'))
    FROM pg_constraint c
    WHERE c.connamespace = to_regnamespace('orchestration')
      AND c.contype <> 't'
      AND (c.contype <> 'n' OR NOT c.convalidated)
      AND c.conname <> 'alembic_version_pkc'
    """,
    r"""
    SELECT 'indexes/' || c.relname,
           concat_ws(E'\n',
             pg_get_indexdef(i.indexrelid) || ';',
             CASE WHEN NOT (i.indisvalid AND i.indisready) THEN '-- not valid' END)
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relnamespace = to_regnamespace('orchestration')
      AND c.relname <> 'alembic_version_pkc'
    """,
    r"""
    SELECT 'views/' || c.relname,
           concat_ws(E'\n',
             format('CREATE VIEW %s%s AS', c.oid::regclass,
               ' WITH (' || array_to_string(c.reloptions, ', ') || ')'),
             pg_get_viewdef(c.oid),
             '-- owner: ' || c.relowner::regrole::text)
    FROM pg_class c
    WHERE c.relnamespace = to_regnamespace('orchestration')
      AND c.relkind IN ('v', 'm')
    """,
    r"""
    SELECT 'tables/' || c.relname,
           concat_ws(E'\n',
             (SELECT string_agg(
                concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),
                  CASE WHEN a.attcollation <> y.typcollation
                    THEN 'COLLATE ' || a.attcollation::regcollation END,
                  CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                  CASE WHEN a.attgenerated = 's'
                    THEN 'GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ') STORED'
                    ELSE 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END),
                E'\n' ORDER BY a.attnum)
              FROM pg_attribute a
              JOIN pg_type y ON y.oid = a.atttypid
              LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
             format('-- kind: %s, persistence: %s', c.relkind, c.relpersistence),
             '-- owner: ' || c.relowner::regrole,
             '-- options: ' || array_to_string(c.reloptions, ', '),
             CASE WHEN c.relrowsecurity THEN '-- row security' END,
             (SELECT '-- inherits: ' || string_agg(i.inhparent::regclass::text, ', ')
              FROM pg_inherits i WHERE i.inhrelid = c.oid),
             (SELECT '-- children: ' || string_agg(i.inhrelid::regclass::text, ', ')
              FROM pg_inherits i WHERE i.inhparent = c.oid))
    FROM pg_class c
    WHERE c.relnamespace = to_regnamespace('orchestration')
      AND c.relkind IN ('r', 'p', 'f', 'S')
      AND (c.relname <> 'alembic_version' OR c.relowner::regrole::text <> 'symphony_owner')
    """,
    # An operator or a cast in this schema could replace PostgreSQL's, and the guards would use it.
    r"""
    SELECT format('operators/%s(%s,%s)', o.oprname, o.oprleft::regtype, o.oprright::regtype),
           o.oprcode::regprocedure::text
    FROM pg_operator o
    WHERE o.oprnamespace = to_regnamespace('orchestration')
    """,
    r"""
    SELECT format('casts/%s to %s', c.castsource::regtype, c.casttarget::regtype),
           c.castcontext::text
    FROM pg_cast c
    JOIN pg_type y ON y.oid IN (c.castsource, c.casttarget)
    WHERE y.typnamespace = to_regnamespace('orchestration')
    """,
    # The row types of tables and the array types are left out: PostgreSQL makes them itself.
    r"""
    SELECT 'types/' || y.typname,
           concat_ws(E'\n',
             '-- kind: ' || y.typtype::text,
             (SELECT string_agg(
                concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),
                  CASE WHEN a.attcollation <> t.typcollation
                    THEN 'COLLATE ' || a.attcollation::regcollation END),
                E'\n' ORDER BY a.attnum)
              FROM pg_attribute a
              JOIN pg_type t ON t.oid = a.atttypid
              WHERE a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped),
             '-- owner: ' || y.typowner::regrole::text)
    FROM pg_type y
    LEFT JOIN pg_class c ON c.oid = y.typrelid
    WHERE y.typnamespace = to_regnamespace('orchestration')
      AND y.typelem = 0
      AND coalesce(c.relkind, 'c') = 'c'
    """,
    r"""
    SELECT 'rules/' || c.relname || '__' || r.rulename, pg_get_ruledef(r.oid)
    FROM pg_rewrite r
    JOIN pg_class c ON c.oid = r.ev_class
    WHERE c.relnamespace = to_regnamespace('orchestration')
      AND r.rulename <> '_RETURN'
    """,
    # The owner's own privileges are left out, because 17 added one.
    r"""
    WITH acls (path, owner, acl) AS (
      SELECT 'grants/schema', n.nspowner, n.nspacl
      FROM pg_namespace n
      WHERE n.nspname = 'orchestration'
      UNION ALL
      SELECT 'grants/' || c.relname, c.relowner, c.relacl
      FROM pg_class c
      WHERE c.relnamespace = to_regnamespace('orchestration')
        AND c.relkind IN ('r', 'p', 'f', 'S', 'v', 'm')
      UNION ALL
      SELECT 'grants/' || c.relname || '__' || a.attname, c.relowner, a.attacl
      FROM pg_attribute a
      JOIN pg_class c ON c.oid = a.attrelid
      WHERE c.relnamespace = to_regnamespace('orchestration')
        AND a.attacl IS NOT NULL
      UNION ALL
      SELECT 'grants/' || p.proname, p.proowner,
             coalesce(p.proacl, acldefault('f', p.proowner))
      FROM pg_proc p
      WHERE p.pronamespace = to_regnamespace('orchestration')
      UNION ALL
      SELECT 'grants/' || y.typname, y.typowner, coalesce(y.typacl, acldefault('T', y.typowner))
      FROM pg_type y
      LEFT JOIN pg_class c ON c.oid = y.typrelid
      WHERE y.typnamespace = to_regnamespace('orchestration')
        AND y.typelem = 0
        AND coalesce(c.relkind, 'c') = 'c'
      UNION ALL
      SELECT 'grants/default_privileges', d.defaclrole, d.defaclacl
      FROM pg_default_acl d
      WHERE d.defaclnamespace = to_regnamespace('orchestration')
        OR d.defaclnamespace = 0 AND d.defaclrole::regrole::text LIKE 'symphony%'
    )
    SELECT path,
           string_agg(
             format('%s: %s%s', coalesce(g.rolname, 'PUBLIC'), x.privilege_type,
               CASE WHEN x.is_grantable THEN ' with grant option' ELSE '' END),
             E'\n' ORDER BY coalesce(g.rolname, 'PUBLIC'), x.privilege_type)
    FROM acls
    CROSS JOIN LATERAL aclexplode(acls.acl) x
    LEFT JOIN pg_roles g ON g.oid = x.grantee
    WHERE x.grantee <> acls.owner
    GROUP BY path
    """,
    r"""
    SELECT 'roles/' || r.rolname,
           concat_ws(E'\n',
             format('login: %s, superuser: %s, createrole: %s, createdb: %s, replication: %s,'
               ' bypassrls: %s, inherit: %s', r.rolcanlogin, r.rolsuper, r.rolcreaterole,
               r.rolcreatedb, r.rolreplication, r.rolbypassrls, r.rolinherit),
             (SELECT 'member of: ' || string_agg(m.roleid::regrole::text, ', ')
              FROM pg_auth_members m WHERE m.member = r.oid),
             (SELECT 'settings: ' || string_agg(array_to_string(s.setconfig, ', '), ', ')
              FROM pg_db_role_setting s WHERE s.setrole = r.oid))
    FROM pg_roles r
    WHERE r.rolname IN ('symphony_owner', 'symphony_ingest', 'symphony_executor',
      'symphony_control', 'symphony_readonly', 'symphony_auditor')
    """,
    # In replica mode, triggers that are not ENABLE ALWAYS do not fire. No login that is a member of
    # a role of ours may set session_replication_role, and no setting may set it for such a login.
    r"""
    WITH ours AS (
      SELECT DISTINCT m.oid, m.rolname
      FROM pg_roles m
      JOIN pg_roles r ON r.rolname IN ('symphony_owner', 'symphony_ingest', 'symphony_executor',
        'symphony_control', 'symphony_readonly', 'symphony_auditor')
        AND pg_has_role(m.oid, r.oid, 'MEMBER')
      WHERE NOT m.rolsuper
      UNION ALL
      SELECT 0, 'PUBLIC'
    )
    SELECT 'settings/session_replication_role',
           string_agg(format('%s: %s', found.rolname, found.what), E'\n'
             ORDER BY found.rolname, found.what)
    FROM (
      SELECT o.rolname, x.privilege_type AS what
      FROM pg_parameter_acl p
      CROSS JOIN LATERAL aclexplode(p.paracl) x
      JOIN ours o ON o.oid = x.grantee
      WHERE p.parname = 'session_replication_role' AND x.privilege_type = 'SET'
      UNION ALL
      SELECT o.rolname, c.setting
      FROM pg_db_role_setting s
      CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
      JOIN ours o ON o.oid = s.setrole
      JOIN pg_database d ON d.datname = current_database() AND s.setdatabase IN (0, d.oid)
      WHERE c.setting LIKE 'session_replication_role=%'
    ) found
    HAVING count(*) > 0
    """,
)

# The settings that change how PostgreSQL prints a definition.
SETTINGS = {
    "search_path": "''",
    "quote_all_identifiers": "off",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}

# The FROM of a view that reads only one relation, as PostgreSQL prints it.
ONE_RELATION = re.compile(r'^   FROM (?:[\w"]+\.)?([\w"]+)(?: ([\w"]+))?;?$', re.MULTILINE)
FROM = re.compile(r"^   FROM ", re.MULTILINE)
LITERAL = re.compile(r"('(?:[^']|'')*')")


@dataclass(frozen=True)
class Difference:
    """One object that differs from the expected schema."""

    path: str
    kind: Literal["missing", "unexpected", "changed"]

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}"


def read(connection: Connection) -> dict[str, str]:
    """Return the texts of all objects in the live schema, by path.

    Reads only the catalogue and takes no DDL lock. The connection must not be in a transaction,
    because this function runs a read-only one.
    """
    picture: dict[str, str] = {}
    with connection.begin():
        connection.execute(text("SET TRANSACTION READ ONLY"))
        for name, value in SETTINGS.items():
            connection.execute(text(f"SET LOCAL {name} = {value}"))
        for query in QUERIES:
            for path, definition in connection.exec_driver_sql(query.replace("%", "%%")):
                if path.startswith("views/"):
                    definition = without_qualifiers(definition)
                # If two objects have one path, as overloaded functions do, both texts are kept.
                picture[path] = "\n".join(filter(None, (picture.get(path), definition)))
    return picture


def without_qualifiers(view: str) -> str:
    """Return the definition of a view that reads one relation, with its columns not qualified.

    PostgreSQL 15 qualifies these columns everywhere, and 16 and later only in subqueries. The
    result stays unambiguous: every version qualifies the columns of a subquery, and PostgreSQL
    never gives two relations of a view the same name.
    """
    found = ONE_RELATION.search(view)
    if found is None or len(FROM.findall(view)) > 1:
        return view
    # If the name is that of a schema, it qualifies a function, a type or a collation, and stays.
    qualifier = re.compile(
        rf'(?<![\w".:])(?<!COLLATE ){re.escape(found[2] or found[1])}\.'
        r'(?=(?:"(?:[^"]|"")*"|\w+\b)(?!\())'
    )
    # The parts at odd positions are literals, which stay as they are.
    parts = LITERAL.split(view)
    parts[::2] = [qualifier.sub("", part) for part in parts[::2]]
    return "".join(parts)


def expected() -> dict[str, str]:
    """Return the texts in `fingerprint.json`: the schema that `current/` creates."""
    lock = files("orchestration.schema") / "fingerprint.json"
    picture: dict[str, str] = json.loads(lock.read_text("utf-8"))
    return picture


def compare(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    """Return a difference for each object that is missing from `found`, unexpected or changed."""
    differences = [Difference(path, "missing") for path in wanted.keys() - found.keys()]
    differences += [Difference(path, "unexpected") for path in found.keys() - wanted.keys()]
    differences += [
        Difference(path, "changed")
        for path in wanted.keys() & found.keys()
        if wanted[path].rstrip("\n") != found[path].rstrip("\n")
    ]
    return sorted(differences, key=lambda difference: difference.path)
