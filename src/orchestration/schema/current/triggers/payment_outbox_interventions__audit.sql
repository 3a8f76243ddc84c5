CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_interventions REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_outbox_act('intervention_no');
-- enabled: O
