ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT ck_transaction_attempts_rail_reference CHECK ((((rail_reference IS NULL) OR (phase = 'CLOSE'::text)) AND (rail_reference <> ''::text)));
