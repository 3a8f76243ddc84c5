CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.audit_log FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'chain_seq');
-- enabled: A
