CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.payment_outbox_interventions FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'outbox_id', 'intervention_no');
-- enabled: A
