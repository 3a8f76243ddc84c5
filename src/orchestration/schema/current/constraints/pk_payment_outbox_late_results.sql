ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT pk_payment_outbox_late_results PRIMARY KEY (outbox_id, result_no);
