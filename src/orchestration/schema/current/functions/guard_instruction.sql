CREATE FUNCTION orchestration.guard_instruction() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because it names every column that cannot change, and because each of the
-- eight refusals has its own message and hint.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_moved boolean;
  v_advanced boolean;
  v_in_future boolean;
  v_policy_unknown boolean;
  v_rewritten boolean;
  v_adjusted boolean;
  v_ended boolean;
  v_out_of_order boolean;
  v_unversioned boolean;
  v_detail jsonb;
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT v_replica THEN
      NEW.id := coalesce(NEW.id, orchestration.uuid_v7());
      NEW.payload_hash := coalesce(
        NEW.payload_hash,
        encode(sha256('orchestration.payload.v1'::bytea || NEW.payload_salt
          || convert_to(NEW.payload::text, 'UTF8')), 'hex')
      );
      NEW.created_at := coalesce(NEW.created_at, clock_timestamp());
      NEW.updated_at := NEW.created_at;
      NEW.db_user := SESSION_USER;
      NEW.xact_id := pg_current_xact_id()::text::bigint;
    END IF;
    v_detail := jsonb_build_object('id', NEW.id, 'participant_id', NEW.participant_id,
      'idempotency_key', NEW.idempotency_key);
    IF EXISTS (SELECT FROM orchestration.instructions i WHERE i.id = NEW.id) THEN
      -- The primary key rejects the row.
      RETURN NEW;
    END IF;
    IF v_copied THEN
      -- A copied instruction may have any state, and may arrive before the rows it refers to.
      RETURN NEW;
    END IF;
    v_advanced := (NEW.state, NEW.version) IS DISTINCT FROM ('RECEIVED', 1);
    v_in_future := NOT isfinite(NEW.created_at) OR NEW.created_at > clock_timestamp();
    v_policy_unknown := NEW.policy_version_id IS NOT NULL AND NOT EXISTS (
      SELECT FROM orchestration.policy_versions p WHERE p.id = NEW.policy_version_id
    );
    CASE
      WHEN v_advanced THEN
        PERFORM orchestration.raise_invariant(
          'INV-INS-001', 'P7401', 'a new instruction must have state RECEIVED and version 1',
          'instructions',
          v_detail || jsonb_build_object('state', NEW.state, 'version', NEW.version),
          'Use receive_instruction, and change the state afterwards.', 'state'
        );
      WHEN v_in_future THEN
        PERFORM orchestration.raise_invariant(
          'INV-INS-002', 'P7401', 'created_at must not be in the future', 'instructions',
          v_detail || jsonb_build_object('created_at', NEW.created_at),
          'Leave created_at out: the database sets it.', 'created_at'
        );
      WHEN v_policy_unknown THEN
        -- If the version is newer than this snapshot, the gate raises 40001 instead.
        PERFORM orchestration.share_gate('policy_gate');
        PERFORM orchestration.raise_invariant(
          'INV-ATT-008', 'P7105',
          format('policy version %s does not exist', NEW.policy_version_id),
          'policy_versions', v_detail || jsonb_build_object('id', NEW.policy_version_id),
          'Use a version that accepted_policy_versions lists.', 'id'
        );
      ELSE
        NULL;
    END CASE;
    RETURN NEW;
  END IF;

  v_detail := jsonb_build_object('id', OLD.id, 'from', OLD.state, 'to', NEW.state);
  v_moved := NEW.state IS DISTINCT FROM OLD.state;
  v_rewritten :=
    (NEW.id, NEW.participant_id, NEW.idempotency_key, NEW.instruction_type, NEW.end_to_end_id,
      NEW.uetr, NEW.value_date, NEW.amount_minor, NEW.currency, NEW.debtor_account,
      NEW.creditor_account, NEW.payload, NEW.payload_salt, NEW.payload_hash, NEW.attestation_id,
      NEW.policy_version_id, NEW.created_at, NEW.db_user, NEW.xact_id)
    IS DISTINCT FROM (OLD.id, OLD.participant_id, OLD.idempotency_key, OLD.instruction_type,
      OLD.end_to_end_id, OLD.uetr, OLD.value_date, OLD.amount_minor, OLD.currency,
      OLD.debtor_account, OLD.creditor_account, OLD.payload, OLD.payload_salt, OLD.payload_hash,
      OLD.attestation_id, OLD.policy_version_id, OLD.created_at, OLD.db_user, OLD.xact_id);
  v_adjusted := NOT v_moved AND (NEW.reason, NEW.version, NEW.updated_at, NEW.completed_at)
    IS DISTINCT FROM (OLD.reason, OLD.version, OLD.updated_at, OLD.completed_at);
  v_ended := v_moved AND OLD.state IN ('COMPLETED', 'FAILED');
  v_out_of_order := v_moved AND (OLD.state, NEW.state) NOT IN (
    ('RECEIVED', 'AUTHORIZED'), ('AUTHORIZED', 'EXECUTING'), ('EXECUTING', 'COMPLETED'),
    ('RECEIVED', 'FAILED'), ('AUTHORIZED', 'FAILED'), ('EXECUTING', 'FAILED')
  );
  -- In replica mode no trigger writes the history, so a change of state by hand is rejected. A
  -- copied row arrives with the version that the publisher has counted.
  v_unversioned := v_moved AND v_replica AND NEW.version <= OLD.version;
  CASE
    WHEN v_rewritten THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', 'the identity and content of an instruction cannot change',
        'instructions', v_detail,
        'Fail the instruction. Receive the correct content under a new idempotency key.'
      );
    WHEN v_adjusted THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401',
        'reason, version, updated_at and completed_at can change only together with state',
        'instructions', v_detail,
        'Leave them unchanged: the database sets them when the state changes.', 'version'
      );
    WHEN v_ended THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', format('state %s is final', OLD.state), 'instructions', v_detail,
        'To try again, receive a new instruction under a new idempotency key.', 'state'
      );
    WHEN v_out_of_order THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-001', 'P7401',
        format('state cannot change from %s to %s', OLD.state, NEW.state), 'instructions',
        v_detail,
        'The order is RECEIVED, AUTHORIZED, EXECUTING, COMPLETED. Each but the last can become'
          ' FAILED.',
        'state'
      );
    WHEN v_unversioned THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', 'version must increase when state changes, also in replica mode',
        'instructions', v_detail || jsonb_build_object('version', NEW.version),
        'Set session_replication_role to origin: the database then sets version.', 'version'
      );
    ELSE
      NULL;
  END CASE;
  IF v_moved AND NOT v_replica THEN
    NEW.version := OLD.version + 1;
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    NEW.completed_at := CASE WHEN NEW.state IN ('COMPLETED', 'FAILED') THEN NEW.updated_at END;
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_instruction FROM PUBLIC;
