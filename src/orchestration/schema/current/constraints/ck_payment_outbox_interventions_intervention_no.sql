ALTER TABLE orchestration.payment_outbox_interventions ADD CONSTRAINT ck_payment_outbox_interventions_intervention_no CHECK ((intervention_no >= 1));
