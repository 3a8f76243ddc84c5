symphony_auditor: EXECUTE
symphony_control: EXECUTE
symphony_readonly: EXECUTE
