CREATE UNIQUE INDEX uq_ingress_attestations_id_policy_version_id ON orchestration.ingress_attestations USING btree (id, policy_version_id);
