CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.payment_outbox_attempts FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001', 'outbox_id', 'attempt_no', 'phase');
-- enabled: A
