ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT ck_payment_outbox_late_results_outcome CHECK ((outcome = ANY (ARRAY['SENT'::text, 'REJECTED'::text, 'NOT_SENT'::text])));
