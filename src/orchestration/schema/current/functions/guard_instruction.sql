CREATE FUNCTION orchestration.guard_instruction() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
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
      -- The primary key refuses it.
      RETURN NEW;
    END IF;
    IF v_copied THEN
      -- It may have moved on since, and come before what it refers to.
      RETURN NEW;
    END IF;
    IF (NEW.state, NEW.version) IS DISTINCT FROM ('RECEIVED', 1) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-001', 'P7401', 'an instruction enters as RECEIVED, version 1', 'instructions',
        v_detail || jsonb_build_object('state', NEW.state, 'version', NEW.version),
        'Receive it by receive_instruction; the other states are reached later.', 'state'
      );
    END IF;
    IF NOT isfinite(NEW.created_at) OR NEW.created_at > clock_timestamp() THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', 'created_at is in the future', 'instructions',
        v_detail || jsonb_build_object('created_at', NEW.created_at),
        'Leave created_at out: the database sets it.', 'created_at'
      );
    END IF;
    IF NEW.policy_version_id IS NOT NULL AND NOT EXISTS (
      SELECT FROM orchestration.policy_versions p WHERE p.id = NEW.policy_version_id
    ) THEN
      -- A snapshot older than the version is told so by the gate, with 40001.
      PERFORM orchestration.share_gate('policy_gate');
      PERFORM orchestration.raise_invariant(
        'INV-ATT-008', 'P7105', format('policy version %s is unknown', NEW.policy_version_id),
        'policy_versions', v_detail || jsonb_build_object('id', NEW.policy_version_id),
        'Receive it under a version of accepted_policy_versions.', 'id'
      );
    END IF;
    RETURN NEW;
  END IF;

  v_detail := jsonb_build_object('id', OLD.id, 'from', OLD.state, 'to', NEW.state);
  IF (NEW.id, NEW.participant_id, NEW.idempotency_key, NEW.instruction_type, NEW.end_to_end_id,
      NEW.uetr, NEW.value_date, NEW.amount_minor, NEW.currency, NEW.debtor_account,
      NEW.creditor_account, NEW.payload, NEW.payload_salt, NEW.payload_hash, NEW.attestation_id,
      NEW.policy_version_id, NEW.created_at, NEW.db_user, NEW.xact_id)
    IS DISTINCT FROM (OLD.id, OLD.participant_id, OLD.idempotency_key, OLD.instruction_type,
      OLD.end_to_end_id, OLD.uetr, OLD.value_date, OLD.amount_minor, OLD.currency,
      OLD.debtor_account, OLD.creditor_account, OLD.payload, OLD.payload_salt, OLD.payload_hash,
      OLD.attestation_id, OLD.policy_version_id, OLD.created_at, OLD.db_user, OLD.xact_id) THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-002', 'P7401', 'identity and content never change', 'instructions', v_detail,
      'Fail it, and receive the right content under a new idempotency key.'
    );
  END IF;
  IF NEW.state = OLD.state THEN
    IF (NEW.reason, NEW.version, NEW.updated_at, NEW.completed_at)
      IS DISTINCT FROM (OLD.reason, OLD.version, OLD.updated_at, OLD.completed_at) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', 'version, reason and times change with the state only',
        'instructions', v_detail, 'The database sets them when the state changes.', 'version'
      );
    END IF;
    RETURN NEW;
  END IF;
  IF OLD.state IN ('COMPLETED', 'FAILED') THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-002', 'P7401', format('%s is final', OLD.state), 'instructions', v_detail,
      'A new try is a new instruction, under a new idempotency key.', 'state'
    );
  END IF;
  IF (OLD.state, NEW.state) NOT IN (
    ('RECEIVED', 'AUTHORIZED'), ('AUTHORIZED', 'EXECUTING'), ('EXECUTING', 'COMPLETED'),
    ('RECEIVED', 'FAILED'), ('AUTHORIZED', 'FAILED'), ('EXECUTING', 'FAILED')
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-001', 'P7401', format('%s does not follow %s', NEW.state, OLD.state),
      'instructions', v_detail,
      'RECEIVED, AUTHORIZED, EXECUTING, COMPLETED; FAILED from any of the first three.', 'state'
    );
  END IF;
  IF NOT v_replica THEN
    NEW.version := OLD.version + 1;
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    NEW.completed_at := CASE WHEN NEW.state IN ('COMPLETED', 'FAILED') THEN NEW.updated_at END;
  ELSIF NEW.version <= OLD.version THEN
    -- An act in replica mode, where nothing would record it; what is copied brings its version.
    PERFORM orchestration.raise_invariant(
      'INV-INS-002', 'P7401', 'a transition in replica mode brings its version', 'instructions',
      v_detail || jsonb_build_object('version', NEW.version),
      'Leave replica mode: the database counts the version and writes the history.', 'version'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_instruction FROM PUBLIC;
