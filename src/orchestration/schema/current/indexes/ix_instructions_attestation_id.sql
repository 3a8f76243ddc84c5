CREATE INDEX ix_instructions_attestation_id ON orchestration.instructions USING btree (attestation_id);
