CREATE INDEX ix_instructions_unresolved ON orchestration.instructions USING btree (id) WHERE (unresolved > 0);
