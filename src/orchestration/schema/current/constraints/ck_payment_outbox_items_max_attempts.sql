ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_max_attempts CHECK (((max_attempts >= 1) AND (max_attempts <= 1000)));
