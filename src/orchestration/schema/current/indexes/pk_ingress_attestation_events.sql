CREATE UNIQUE INDEX pk_ingress_attestation_events ON orchestration.ingress_attestation_events USING btree (attestation_id, event);
