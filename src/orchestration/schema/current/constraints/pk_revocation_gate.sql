ALTER TABLE orchestration.revocation_gate ADD CONSTRAINT pk_revocation_gate PRIMARY KEY (singleton);
