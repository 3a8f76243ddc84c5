ALTER TABLE orchestration.payment_outbox_late_results ADD CONSTRAINT ck_payment_outbox_late_results_source CHECK (
CASE source
    WHEN 'WORKER'::text THEN ((lease_token IS NOT NULL) AND (reason IS NULL))
    WHEN 'RECONCILIATION'::text THEN ((lease_token IS NULL) AND (reason IS NOT NULL))
    ELSE false
END);
