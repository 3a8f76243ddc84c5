CREATE TRIGGER kill_switch_update AFTER UPDATE ON orchestration.instructions FOR EACH ROW WHEN (((new.state = ANY (ARRAY['AUTHORIZED'::text, 'EXECUTING'::text])) AND (new.state <> old.state))) EXECUTE FUNCTION orchestration.block_execution_if_killed('EXECUTION');
-- enabled: A
