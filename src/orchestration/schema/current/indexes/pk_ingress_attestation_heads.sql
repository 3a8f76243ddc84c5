CREATE UNIQUE INDEX pk_ingress_attestation_heads ON orchestration.ingress_attestation_heads USING btree (caller_identity);
