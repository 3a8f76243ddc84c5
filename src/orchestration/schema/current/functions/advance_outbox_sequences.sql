CREATE FUNCTION orchestration.advance_outbox_sequences() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  INSERT INTO orchestration.participant_outbox_sequences AS s (participant_id, next_sequence_id)
  SELECT i.participant_id, max(i.sequence_id) + 1
  FROM inserted i
  GROUP BY i.participant_id
  ORDER BY i.participant_id
  ON CONFLICT (participant_id) DO UPDATE SET next_sequence_id = excluded.next_sequence_id
  WHERE s.next_sequence_id < excluded.next_sequence_id;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.advance_outbox_sequences OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.advance_outbox_sequences FROM PUBLIC;
