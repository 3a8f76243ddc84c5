CREATE FUNCTION orchestration.record_status_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_nestloop = off
AS $$
-- enable_nestloop is off because the session keeps the first plan. If a nested loop is planned for
-- one row, a later statement that changes many rows compares every pair of them.
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
$$;

ALTER FUNCTION orchestration.record_status_history OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_status_history FROM PUBLIC;
