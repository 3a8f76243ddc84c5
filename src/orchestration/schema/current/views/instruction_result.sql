-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.instruction_result
WITH (security_invoker = true)
AS
SELECT i.*, false AS replayed
FROM orchestration.instructions i;

ALTER VIEW orchestration.instruction_result OWNER TO symphony_owner;
