CREATE OR REPLACE FUNCTION orchestration.guard_outbox_pending_update()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
-- Called where the identity changes, or the lease under one token.
BEGIN
  IF (NEW.outbox_id, NEW.instruction_id, NEW.participant_id, NEW.sequence_id, NEW.rail_type)
    IS DISTINCT FROM
    (OLD.outbox_id, OLD.instruction_id, OLD.participant_id, OLD.sequence_id, OLD.rail_type) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'the identity of a pending row never changes',
      'payment_outbox_pending', jsonb_build_object('outbox_id', OLD.outbox_id),
      'Only the lease, the attempt count and the time of the next attempt change.', 'outbox_id'
    );
  END IF;
  IF NEW.claimed_by <> OLD.claimed_by OR OLD.lease_expires_at <= clock_timestamp() THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-002', 'P7002', 'a lease is renewed by its own worker, before it expires',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', OLD.outbox_id, 'worker_id', NEW.claimed_by),
      'Claim again: the item may be another worker''s by now.', 'lease_expires_at'
    );
  END IF;
  RETURN NEW;
END
$function$;
-- owner: symphony_owner
