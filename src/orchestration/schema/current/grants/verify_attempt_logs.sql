symphony_auditor: EXECUTE
symphony_control: EXECUTE
