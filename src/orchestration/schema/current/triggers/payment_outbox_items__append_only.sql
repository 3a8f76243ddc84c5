CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.payment_outbox_items FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001', 'outbox_id');
-- enabled: A
