CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.instructions FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-INS-002', 'P0001', 'id', 'state');
-- enabled: A
