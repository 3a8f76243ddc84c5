CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revoked_tokens FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001');
-- enabled: A
