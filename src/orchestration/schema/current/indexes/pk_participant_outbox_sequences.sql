CREATE UNIQUE INDEX pk_participant_outbox_sequences ON orchestration.participant_outbox_sequences USING btree (participant_id);
