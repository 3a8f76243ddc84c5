ALTER TABLE orchestration.status_history ADD CONSTRAINT ck_status_history_transition CHECK ((
CASE to_state
    WHEN 'RECEIVED'::text THEN ((from_state IS NULL) AND (version = 1))
    WHEN 'AUTHORIZED'::text THEN (from_state = 'RECEIVED'::text)
    WHEN 'EXECUTING'::text THEN (from_state = 'AUTHORIZED'::text)
    WHEN 'COMPLETED'::text THEN (from_state = 'EXECUTING'::text)
    WHEN 'FAILED'::text THEN (from_state = ANY (ARRAY['RECEIVED'::text, 'AUTHORIZED'::text, 'EXECUTING'::text]))
    ELSE false
END AND ((from_state IS NOT NULL) OR (to_state = 'RECEIVED'::text))));
