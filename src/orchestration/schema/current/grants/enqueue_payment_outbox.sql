symphony_executor: EXECUTE
symphony_ingest: EXECUTE
