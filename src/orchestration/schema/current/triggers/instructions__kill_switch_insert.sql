CREATE TRIGGER kill_switch_insert AFTER INSERT ON orchestration.instructions REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST');
-- enabled: A
