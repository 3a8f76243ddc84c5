CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revocation_gate FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001');
-- enabled: A
