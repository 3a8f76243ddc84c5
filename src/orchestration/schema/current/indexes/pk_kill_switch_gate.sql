CREATE UNIQUE INDEX pk_kill_switch_gate ON orchestration.kill_switch_gate USING btree (singleton);
