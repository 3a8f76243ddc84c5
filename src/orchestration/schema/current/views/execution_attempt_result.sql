CREATE VIEW orchestration.execution_attempt_result WITH (security_invoker=true) AS
 SELECT instruction_id,
    attempt_no,
    phase,
    participant_id,
    worker_id,
    outcome,
    error_code,
    error_message,
    occurred_at,
    db_user,
    xact_id,
    false AS replayed
   FROM orchestration.execution_attempts a;
-- owner: symphony_owner
