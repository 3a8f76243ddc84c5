CREATE UNIQUE INDEX uq_instructions_participant_id_id_open ON orchestration.instructions USING btree (participant_id, id, open);
