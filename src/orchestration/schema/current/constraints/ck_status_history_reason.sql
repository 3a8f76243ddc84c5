ALTER TABLE orchestration.status_history ADD CONSTRAINT ck_status_history_reason CHECK ((((to_state = 'FAILED'::text) = (reason IS NOT NULL)) AND (octet_length(reason) <= 4000)));
