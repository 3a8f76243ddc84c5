ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_payload CHECK ((jsonb_typeof(payload) = 'object'::text));
