symphony_auditor: EXECUTE
symphony_control: EXECUTE
symphony_ingest: EXECUTE
symphony_readonly: EXECUTE
