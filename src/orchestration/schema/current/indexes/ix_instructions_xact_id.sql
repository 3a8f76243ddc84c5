CREATE INDEX ix_instructions_xact_id ON orchestration.instructions USING brin (xact_id);
