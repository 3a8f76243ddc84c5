CREATE TRIGGER history_update AFTER UPDATE ON orchestration.instructions REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_status_history();
-- enabled: O
