ALTER TABLE orchestration.payment_outbox_interventions ADD CONSTRAINT ck_payment_outbox_interventions_acted_by CHECK (((octet_length(acted_by) >= 1) AND (octet_length(acted_by) <= 1000)));
