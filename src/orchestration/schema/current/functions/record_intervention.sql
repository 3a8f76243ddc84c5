CREATE FUNCTION orchestration.record_intervention() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Argument of the trigger: the action. The functions record an intervention before they act; what the
-- owner changes by hand is recorded here, without a reason.
DECLARE
  v_intervention orchestration.payment_outbox_interventions;
  v_newest orchestration.payment_outbox_interventions;
BEGIN
  v_intervention.outbox_id := NEW.outbox_id;
  v_intervention.action := TG_ARGV[0];
  CASE TG_ARGV[0]
    WHEN 'CANCEL' THEN
      v_intervention.attempt_no := NEW.attempt_no;
    WHEN 'RESCHEDULE' THEN
      v_intervention.time_before := OLD.next_attempt_at;
      v_intervention.time_after := NEW.next_attempt_at;
    WHEN 'EXPIRE_LEASE' THEN
      v_intervention.attempt_no := NEW.attempt_count;
      v_intervention.time_before := OLD.lease_expires_at;
      v_intervention.time_after := NEW.lease_expires_at;
  END CASE;
  SELECT v.* INTO v_newest
  FROM orchestration.payment_outbox_interventions v
  WHERE v.outbox_id = NEW.outbox_id
  ORDER BY v.intervention_no DESC
  LIMIT 1;
  IF (v_newest.xact_id, v_newest.action, v_newest.attempt_no, v_newest.time_before,
      v_newest.time_after)
    IS DISTINCT FROM (pg_current_xact_id()::text::bigint, v_intervention.action,
      v_intervention.attempt_no, v_intervention.time_before, v_intervention.time_after) THEN
    INSERT INTO orchestration.payment_outbox_interventions (
      outbox_id, action, attempt_no, time_before, time_after
    )
    VALUES (
      v_intervention.outbox_id, v_intervention.action, v_intervention.attempt_no,
      v_intervention.time_before, v_intervention.time_after
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_intervention OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_intervention FROM PUBLIC;
