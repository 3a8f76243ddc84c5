ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT ck_payment_outbox_late_results_rail_reference CHECK ((octet_length(rail_reference) <= 1000));
