ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT ck_transaction_attempts_outcome CHECK ((
CASE phase
    WHEN 'OPEN'::text THEN (outcome IS NULL)
    WHEN 'CLOSE'::text THEN (outcome IS NOT NULL)
    ELSE false
END AND (outcome = ANY (ARRAY['SUCCEEDED'::text, 'FAILED'::text, 'ABANDONED'::text]))));
