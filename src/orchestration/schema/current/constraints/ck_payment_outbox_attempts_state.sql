ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_state CHECK (
CASE phase
    WHEN 'OPEN'::text THEN (state = 'DISPATCHING'::text)
    WHEN 'CLOSE'::text THEN (state = ANY (ARRAY['DISPATCHED'::text, 'RETRYABLE'::text, 'FAILED'::text, 'ZOMBIE_REQUEUE'::text]))
    ELSE false
END);
