ALTER TABLE orchestration.schema_revision ADD CONSTRAINT pk_schema_revision PRIMARY KEY (singleton);
