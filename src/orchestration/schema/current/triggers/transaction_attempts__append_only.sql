CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.transaction_attempts FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'instruction_id', 'attempt_no', 'phase');
-- enabled: A
