ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_reason CHECK ((((state = 'FAILED'::text) = (reason IS NOT NULL)) AND (reason <> ''::text)));
