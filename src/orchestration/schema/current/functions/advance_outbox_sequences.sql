CREATE OR REPLACE FUNCTION orchestration.advance_outbox_sequences()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET enable_seqscan TO 'off'
 SET enable_mergejoin TO 'off'
AS $function$
BEGIN
  UPDATE orchestration.participant_outbox_sequences s
  SET next_sequence_id = n.last + 1
  FROM (
    SELECT i.participant_id, max(i.sequence_id) AS last
    FROM inserted i
    GROUP BY i.participant_id
  ) n
  WHERE s.participant_id = n.participant_id
    AND s.next_sequence_id <= n.last;
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
