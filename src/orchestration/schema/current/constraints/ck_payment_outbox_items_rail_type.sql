ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_rail_type CHECK (((octet_length(rail_type) >= 1) AND (octet_length(rail_type) <= 1000)));
