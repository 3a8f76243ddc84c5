ALTER TABLE orchestration.payment_outbox_interventions ADD CONSTRAINT ck_payment_outbox_interventions_action CHECK (
CASE action
    WHEN 'CANCEL'::text THEN ((attempt_no IS NOT NULL) AND (num_nonnulls(result_no, time_before, time_after) = 0))
    WHEN 'RESCHEDULE'::text THEN ((num_nonnulls(attempt_no, result_no) = 0) AND (num_nulls(time_before, time_after) = 0))
    WHEN 'EXPIRE_LEASE'::text THEN ((result_no IS NULL) AND (num_nulls(attempt_no, time_before, time_after) = 0))
    WHEN 'CLOSE_CONTRADICTION'::text THEN ((result_no IS NOT NULL) AND (num_nonnulls(attempt_no, time_before, time_after) = 0))
    ELSE false
END);
