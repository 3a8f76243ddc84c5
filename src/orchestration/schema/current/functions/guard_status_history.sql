CREATE FUNCTION orchestration.guard_status_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_instruction record;
BEGIN
  IF v_replica AND orchestration.copies_a_subscription() THEN
    -- The copied instruction may arrive later, or have a newer state. verify_instructions compares
    -- both.
    RETURN NEW;
  END IF;
  SELECT i.participant_id, i.version, i.state, i.updated_at
  INTO v_instruction
  FROM orchestration.instructions i
  WHERE i.id = NEW.instruction_id;
  IF NOT v_replica THEN
    NEW.occurred_at := coalesce(v_instruction.updated_at, clock_timestamp());
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF v_instruction IS NULL OR EXISTS (
    SELECT FROM orchestration.status_history h
    WHERE h.instruction_id = NEW.instruction_id AND h.version = NEW.version
  ) THEN
    -- The foreign key or the primary key rejects the row.
    RETURN NEW;
  END IF;
  IF (NEW.participant_id, NEW.version, NEW.to_state) IS DISTINCT FROM
    (v_instruction.participant_id, v_instruction.version, v_instruction.state) THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-004', 'P0001',
      'version, to_state or participant_id differs from that of the instruction', 'status_history',
      jsonb_build_object('instruction_id', NEW.instruction_id, 'version', NEW.version,
        'to_state', NEW.to_state),
      'Do not write status_history: the database does, with every change of state.', 'version'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_status_history OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_status_history FROM PUBLIC;
