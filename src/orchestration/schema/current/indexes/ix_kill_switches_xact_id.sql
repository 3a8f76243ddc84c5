CREATE INDEX ix_kill_switches_xact_id ON orchestration.kill_switches USING brin (xact_id);
