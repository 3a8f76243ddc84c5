CREATE FUNCTION orchestration.fill_outbox_item() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF current_setting('session_replication_role') <> 'replica' THEN
    NEW.outbox_id := coalesce(NEW.outbox_id, orchestration.uuid_v7());
    NEW.sequence_id := coalesce(
      NEW.sequence_id, orchestration.bump_participant_outbox_seq(NEW.participant_id));
    NEW.payload_hash := coalesce(
      NEW.payload_hash,
      encode(sha256('orchestration.payload.v1'::bytea || NEW.payload_salt
        || convert_to(NEW.payload::text, 'UTF8')), 'hex')
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.fill_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.fill_outbox_item FROM PUBLIC;
