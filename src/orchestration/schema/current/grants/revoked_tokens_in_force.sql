symphony_auditor: SELECT
symphony_control: SELECT
symphony_ingest: SELECT
symphony_readonly: SELECT
