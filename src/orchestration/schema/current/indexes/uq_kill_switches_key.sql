CREATE UNIQUE INDEX uq_kill_switches_key ON orchestration.kill_switches USING btree (key);
