CREATE INDEX ix_status_history_xact_id ON orchestration.status_history USING brin (xact_id);
