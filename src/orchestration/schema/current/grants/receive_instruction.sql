symphony_ingest: EXECUTE
