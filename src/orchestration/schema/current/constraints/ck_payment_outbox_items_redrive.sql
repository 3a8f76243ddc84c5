ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_redrive CHECK (((redrive_no >= 0) AND ((redrive_no = 0) = (redrive_of IS NULL))));
