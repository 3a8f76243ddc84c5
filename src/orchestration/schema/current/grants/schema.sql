symphony_auditor: USAGE
symphony_control: USAGE
symphony_executor: USAGE
symphony_ingest: USAGE
symphony_readonly: USAGE
