ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT ck_payment_outbox_late_results_reason CHECK (((reason <> ''::text) AND (octet_length(reason) <= 4000)));
