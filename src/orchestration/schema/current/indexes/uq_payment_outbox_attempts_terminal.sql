CREATE UNIQUE INDEX uq_payment_outbox_attempts_terminal ON orchestration.payment_outbox_attempts USING btree (outbox_id) WHERE (state = ANY (ARRAY['DISPATCHED'::text, 'FAILED'::text]));
