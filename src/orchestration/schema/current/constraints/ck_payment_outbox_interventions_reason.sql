ALTER TABLE orchestration.payment_outbox_interventions ADD CONSTRAINT ck_payment_outbox_interventions_reason CHECK (((octet_length(reason) >= 1) AND (octet_length(reason) <= 4000)));
