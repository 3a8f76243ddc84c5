ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_times CHECK ((((phase = 'CLOSE'::text) = (completed_at IS NOT NULL)) AND isfinite(claimed_at)));
