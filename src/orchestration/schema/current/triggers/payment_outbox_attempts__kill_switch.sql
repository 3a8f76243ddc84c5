CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.payment_outbox_attempts REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('DISPATCH');
-- enabled: A
