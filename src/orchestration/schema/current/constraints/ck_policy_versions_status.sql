ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_status CHECK ((status = ANY (ARRAY['ACTIVE'::text, 'GRACE'::text, 'RETIRED'::text])));
