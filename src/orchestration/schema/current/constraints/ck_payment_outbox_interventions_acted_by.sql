ALTER TABLE orchestration.payment_outbox_interventions ADD CONSTRAINT ck_payment_outbox_interventions_acted_by CHECK (((acted_by <> ''::text) AND (octet_length(acted_by) <= 1000)));
