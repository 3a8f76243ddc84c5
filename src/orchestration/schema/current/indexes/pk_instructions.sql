CREATE UNIQUE INDEX pk_instructions ON orchestration.instructions USING btree (id);
