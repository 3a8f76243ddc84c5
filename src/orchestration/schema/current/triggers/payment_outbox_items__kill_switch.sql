CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.payment_outbox_items REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST');
-- enabled: A
