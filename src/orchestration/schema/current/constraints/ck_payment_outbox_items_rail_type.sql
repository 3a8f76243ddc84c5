ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_rail_type CHECK ((rail_type <> ''::text));
