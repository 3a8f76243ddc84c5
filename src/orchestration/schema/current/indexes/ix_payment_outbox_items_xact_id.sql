CREATE INDEX ix_payment_outbox_items_xact_id ON orchestration.payment_outbox_items USING brin (xact_id);
