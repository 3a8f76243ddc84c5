ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT ck_payment_outbox_late_results_recorded_by CHECK (((octet_length(recorded_by) >= 1) AND (octet_length(recorded_by) <= 1000)));
