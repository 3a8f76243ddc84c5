ALTER TABLE orchestration.schema_revision ADD CONSTRAINT ck_schema_revision_singleton CHECK (singleton);
