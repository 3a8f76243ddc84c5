ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT ck_transaction_attempts_rail_type CHECK ((rail_type <> ''::text));
