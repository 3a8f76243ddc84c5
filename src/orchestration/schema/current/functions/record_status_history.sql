CREATE OR REPLACE FUNCTION orchestration.record_status_history()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET enable_nestloop TO 'off'
AS $function$
-- Without nested loops: a plan made for one row would join the many of a later statement in pairs.
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO orchestration.status_history (instruction_id, version, participant_id, to_state)
    SELECT a.id, a.version, a.participant_id, a.state
    FROM after a;
  ELSE
    INSERT INTO orchestration.status_history (
      instruction_id, version, participant_id, from_state, to_state, reason
    )
    SELECT a.id, a.version, a.participant_id, b.state, a.state, a.reason
    FROM after a
    JOIN before b ON b.id = a.id
    WHERE b.version <> a.version;
  END IF;
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
