ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_outcome CHECK ((
CASE state
    WHEN 'FAILED'::text THEN (outcome IS NOT NULL)
    WHEN 'RETRYABLE'::text THEN true
    ELSE (outcome IS NULL)
END AND (outcome = ANY (ARRAY['REJECTED'::text, 'UNKNOWN'::text, 'NOT_SENT'::text]))));
