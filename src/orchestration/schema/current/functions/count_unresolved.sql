CREATE FUNCTION orchestration.count_unresolved() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction_id uuid;
  v_unknown integer;
BEGIN
  IF TG_TABLE_NAME = 'payment_outbox_attempts' THEN
    -- A transaction that records a late result first updates the pending row, which this
    -- transaction has locked. So either this look-up finds the late result, or the other
    -- transaction continues after this one and counts this attempt.
    IF NEW.outcome <> 'UNKNOWN' AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_late_results l WHERE l.outbox_id = NEW.outbox_id
    ) THEN
      RETURN NULL;
    END IF;
  END IF;
  SELECT i.instruction_id INTO v_instruction_id
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = NEW.outbox_id;
  PERFORM 1
  FROM orchestration.instructions n
  WHERE n.id = v_instruction_id
  FOR NO KEY UPDATE;
  SELECT count(*) INTO v_unknown
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = v_instruction_id AND s.known_outcome = 'UNKNOWN';
  UPDATE orchestration.instructions n
  SET unresolved = v_unknown
  WHERE n.id = v_instruction_id;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.count_unresolved OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.count_unresolved FROM PUBLIC;
