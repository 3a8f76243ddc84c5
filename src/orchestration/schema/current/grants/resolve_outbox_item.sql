symphony_control: EXECUTE
