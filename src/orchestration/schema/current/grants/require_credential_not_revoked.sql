symphony_control: EXECUTE
symphony_executor: EXECUTE
symphony_ingest: EXECUTE
