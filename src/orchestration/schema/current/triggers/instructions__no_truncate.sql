CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.instructions FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-INS-002', 'P0001');
-- enabled: A
