CREATE FUNCTION orchestration.bump_participant_outbox_seq(p_participant_id text) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Locks the participant's row and returns the next number. The trigger `sequences` updates the row
-- once the item is stored, so an item that is not stored after all leaves no gap.
DECLARE
  v_next bigint;
BEGIN
  PERFORM 1
  FROM orchestration.participant_outbox_sequences s
  WHERE s.participant_id = p_participant_id
  FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    INSERT INTO orchestration.participant_outbox_sequences AS s (participant_id)
    VALUES (p_participant_id)
    ON CONFLICT (participant_id) DO UPDATE SET next_sequence_id = s.next_sequence_id;
  END IF;
  SELECT greatest(
    s.next_sequence_id,
    (SELECT max(i.sequence_id) + 1
     FROM orchestration.payment_outbox_items i
     WHERE i.participant_id = p_participant_id)
  )
  INTO v_next
  FROM orchestration.participant_outbox_sequences s
  WHERE s.participant_id = p_participant_id;
  RETURN v_next;
END
$$;

ALTER FUNCTION orchestration.bump_participant_outbox_seq OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.bump_participant_outbox_seq FROM PUBLIC;
