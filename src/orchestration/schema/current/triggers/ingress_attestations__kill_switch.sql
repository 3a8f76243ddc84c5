CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.ingress_attestations REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST');
-- enabled: A
