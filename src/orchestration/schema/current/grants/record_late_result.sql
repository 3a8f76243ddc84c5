symphony_control: EXECUTE
symphony_executor: EXECUTE
