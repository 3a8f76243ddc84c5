CREATE UNIQUE INDEX pk_ingress_attestations ON orchestration.ingress_attestations USING btree (id);
