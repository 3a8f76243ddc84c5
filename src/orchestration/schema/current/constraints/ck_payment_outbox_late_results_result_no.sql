ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT ck_payment_outbox_late_results_result_no CHECK ((result_no >= 1));
