CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.revocation_gate FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001');
-- enabled: A
