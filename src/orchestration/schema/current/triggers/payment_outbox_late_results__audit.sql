CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_late_results REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_outbox_act('result_no');
-- enabled: O
