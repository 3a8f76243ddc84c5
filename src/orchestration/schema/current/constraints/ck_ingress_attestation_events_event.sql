ALTER TABLE orchestration.ingress_attestation_events ADD CONSTRAINT ck_ingress_attestation_events_event CHECK ((event = ANY (ARRAY['EXECUTION_STARTED'::text, 'EXECUTION_COMPLETED'::text])));
