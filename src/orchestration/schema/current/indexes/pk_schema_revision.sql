CREATE UNIQUE INDEX pk_schema_revision ON orchestration.schema_revision USING btree (singleton);
