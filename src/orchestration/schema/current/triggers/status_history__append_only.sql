CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.status_history FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'instruction_id', 'version');
-- enabled: A
