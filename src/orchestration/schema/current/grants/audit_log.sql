symphony_auditor: SELECT
symphony_control: SELECT
