symphony_auditor: SELECT
symphony_control: SELECT
symphony_executor: SELECT
symphony_readonly: SELECT
