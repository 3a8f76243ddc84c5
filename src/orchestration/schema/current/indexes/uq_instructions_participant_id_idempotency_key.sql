CREATE UNIQUE INDEX uq_instructions_participant_id_idempotency_key ON orchestration.instructions USING btree (participant_id, idempotency_key);
