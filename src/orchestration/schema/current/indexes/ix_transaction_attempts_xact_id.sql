CREATE INDEX ix_transaction_attempts_xact_id ON orchestration.transaction_attempts USING brin (xact_id);
