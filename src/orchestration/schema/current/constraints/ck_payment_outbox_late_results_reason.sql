ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT ck_payment_outbox_late_results_reason CHECK (((octet_length(reason) >= 1) AND (octet_length(reason) <= 4000)));
