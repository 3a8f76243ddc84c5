ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_state CHECK ((state = ANY (ARRAY['RECEIVED'::text, 'AUTHORIZED'::text, 'EXECUTING'::text, 'COMPLETED'::text, 'FAILED'::text])));
