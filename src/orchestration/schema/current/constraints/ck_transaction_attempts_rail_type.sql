ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT ck_transaction_attempts_rail_type CHECK (((octet_length(rail_type) >= 1) AND (octet_length(rail_type) <= 1000)));
