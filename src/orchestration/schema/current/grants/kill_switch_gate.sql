symphony_auditor: SELECT
