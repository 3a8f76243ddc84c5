CREATE TRIGGER guard_end AFTER UPDATE ON orchestration.instructions FOR EACH ROW WHEN (((new.state = ANY (ARRAY['COMPLETED'::text, 'FAILED'::text])) AND (new.state <> old.state))) EXECUTE FUNCTION orchestration.guard_instruction_end();
-- enabled: A
