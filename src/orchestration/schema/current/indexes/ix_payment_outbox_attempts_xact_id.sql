CREATE INDEX ix_payment_outbox_attempts_xact_id ON orchestration.payment_outbox_attempts USING brin (xact_id);
