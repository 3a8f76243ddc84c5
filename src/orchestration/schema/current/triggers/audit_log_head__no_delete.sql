CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.audit_log_head FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001', 'chain_seq');
-- enabled: A
