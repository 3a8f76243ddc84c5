CREATE INDEX ix_kill_switches_last ON orchestration.kill_switches USING btree (scope, COALESCE(target, ''::text), event_no);
