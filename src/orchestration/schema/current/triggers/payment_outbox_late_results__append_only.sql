CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.payment_outbox_late_results FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'outbox_id', 'result_no');
-- enabled: A
