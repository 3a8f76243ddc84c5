CREATE INDEX ix_audit_log_xact_id ON orchestration.audit_log USING brin (xact_id);
