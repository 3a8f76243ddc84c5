CREATE TRIGGER history_insert AFTER INSERT ON orchestration.instructions REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_status_history();
-- enabled: O
