ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_value_date CHECK (((EXTRACT(year FROM value_date) >= (1)::numeric) AND (EXTRACT(year FROM value_date) <= (9998)::numeric)));
