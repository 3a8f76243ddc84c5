CREATE INDEX ix_execution_attempts_xact_id ON orchestration.execution_attempts USING brin (xact_id);
