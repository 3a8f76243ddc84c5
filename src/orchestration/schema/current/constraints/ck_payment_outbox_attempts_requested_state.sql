ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_requested_state CHECK ((
CASE
    WHEN (phase = 'OPEN'::text) THEN (requested_state IS NULL)
    WHEN (requested_state IS NULL) THEN (state = ANY (ARRAY['FAILED'::text, 'ZOMBIE_REQUEUE'::text]))
    WHEN (requested_state = 'RETRYABLE'::text) THEN (state = ANY (ARRAY['RETRYABLE'::text, 'FAILED'::text]))
    WHEN (requested_state = ANY (ARRAY['DISPATCHED'::text, 'FAILED'::text])) THEN (state = requested_state)
    ELSE false
END AND ((requested_state IS NOT NULL) OR (requested_error_code IS NULL))));
