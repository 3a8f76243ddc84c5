symphony_executor: EXECUTE
