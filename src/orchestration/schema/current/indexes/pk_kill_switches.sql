CREATE UNIQUE INDEX pk_kill_switches ON orchestration.kill_switches USING btree (event_no);
