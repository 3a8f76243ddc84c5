ALTER TABLE orchestration.execution_attempts ADD CONSTRAINT ck_execution_attempts_outcome CHECK ((
CASE phase
    WHEN 'OPEN'::text THEN (outcome IS NULL)
    WHEN 'CLOSE'::text THEN (outcome IS NOT NULL)
    ELSE false
END AND (outcome = ANY (ARRAY['SUCCEEDED'::text, 'FAILED'::text, 'ABANDONED'::text]))));
