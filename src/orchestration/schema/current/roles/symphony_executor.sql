login: f, superuser: f, createrole: f, createdb: f, replication: f, bypassrls: f, inherit: t
